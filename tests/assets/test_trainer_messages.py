"""What the trainer reports arrives whole, however it comes to be written."""

import json
import time
from pathlib import Path
from threading import Event, Thread

import dagster as dg

from assets.trainer_messages import WholeLineMessageReader, whole_lines


def test_a_line_is_one_when_it_is_whole(tmp_path: Path) -> None:
    path, ended, got = tmp_path / "messages", Event(), list[str]()
    path.touch()
    reader = Thread(target=lambda: got.extend(whole_lines(path, ended.wait)))
    reader.start()
    with path.open("ab", buffering=0) as file:
        for part in ('{"a": "ä'.encode()[:-1], "ä".encode()[-1:], b'"}\n{"b"', b": 1}\n", b'{"cut off'):
            file.write(part)
            time.sleep(0.05)  # the reader looks meanwhile
    ended.set()
    reader.join()
    assert got == ['{"a": "ä"}', '{"b": 1}']


def test_messages_in_pieces_reach_dagster() -> None:
    """As `SubprocessLauncher` uses it; the writer is slow in the midst of its lines."""

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        reader = WholeLineMessageReader()
        with dg.open_pipes_session(context, dg.PipesTempFileContextInjector(), reader) as session:
            path = session.message_reader_params["path"]
            for number in range(20):
                params = {"payload": {"number": number}}
                line = json.dumps(
                    {"__dagster_pipes_version": "0.1", "method": "report_custom_message", "params": params}
                )
                with Path(path).open("a") as file:
                    file.write(line[:80])
                    file.flush()
                    time.sleep(0.03)
                    file.write(line[80:] + "\n")
        assert [message["number"] for message in session.get_custom_messages()] == list(range(20))
        return dg.MaterializeResult()

    assert dg.materialize([trained]).success
