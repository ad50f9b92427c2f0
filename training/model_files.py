"""The files of a Hugging Face model: where they lie, and what names them."""

import functools
import hashlib
import shutil
from pathlib import Path

_CONFIG = "config.json"
_WEIGHTS = "*.safetensors"
_FILES = (_CONFIG, _WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja")
_NETWORK_SECONDS = 5
_TORCH_VERSION = 1  # count up when `training.torch_models` makes another folder of the same file
TORCH_MODELS = ("torchvision/", "torchaudio/")  # how the names of models begin that are no Hugging Face models


def model_folder(name: str, file: str = "", weights: bool = True) -> Path:
    """The folder of a model: a local one, or that of Hugging Face's cache, into which it is fetched at need.

    Args:
        file: with its weights, of a model of torchvision or torchaudio (`training.torch_models`).
        weights: false: they are not fetched, and may lack.

    Raises:
        ValueError: there is no such model, or it cannot be fetched.
    """
    if file:
        if not name.startswith(TORCH_MODELS):
            expected = f"{' or '.join(f'{kind}NAME' for kind in TORCH_MODELS)}, since weights is {file!r}"
            raise ValueError(f"model is {name!r}, expected {expected}")
        return _torch_folder(name, Path(file))
    if name.startswith(TORCH_MODELS) and not Path(name).is_dir():
        raise ValueError(f"model is {name!r}, which needs weights: FILE, a local file with its state dict")
    if not name:
        raise ValueError("a pretrained encoder needs a model: {kind: ..., model: NAME_OR_FOLDER}")
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = [pattern for pattern in _FILES if weights or pattern != _WEIGHTS]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if any(folder.glob(_WEIGHTS if weights else _CONFIG)):
            return folder
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        pass
    try:
        # Asked first, since the download itself would wait for a silent network without end.
        commit = HfApi().model_info(name, timeout=_NETWORK_SECONDS).sha
        return Path(snapshot_download(name, revision=commit, allow_patterns=wanted, etag_timeout=_NETWORK_SECONDS))
    except Exception as error:  # the hub, the network's library and proxies each have their own
        raise ValueError(
            f"model is {name!r}: there is no such folder, and Hugging Face does not give it "
            f"({type(error).__name__}). Is it spelled right? Without a network: download it elsewhere "
            f"(`hf download {name} --local-dir FOLDER`), bring the folder, and set model to its path"
        ) from error


def _torch_folder(name: str, file: Path) -> Path:
    """In Hugging Face's cache; made once for each content of the file, so that mostly nothing heavy is imported."""
    from huggingface_hub.constants import HF_HOME

    if not file.is_file():
        raise ValueError(f"weights is {str(file)!r}: there is no such file")
    mark = _digest(((file, file.stat().st_size, file.stat().st_mtime_ns),))[:16]
    folder = Path(HF_HOME) / "triptych" / f"{name.replace('/', '-')}-{_TORCH_VERSION}-{mark}"
    if not folder.is_dir():
        from training.torch_models import write_folder

        write_folder(name, file, folder)
    return folder


def llm_folder(name: str, weights: bool = True) -> Path:
    """`model_folder` of the language model."""
    try:
        return model_folder(name, weights=weights)
    except ValueError as error:
        raise ValueError(f"model.llm: {error}; or use `llm: tiny`, which needs no download") from error


def model_files(folder: Path, weights: bool = True) -> list[Path]:
    """What makes a model: configuration, weights (safetensors), tokenizer, preprocessing.

    Args:
        weights: false: all but them.

    Raises:
        ValueError: it has no configuration or no such weights.
    """
    for pattern, what in ((_CONFIG, "configuration"), (_WEIGHTS, "weights as safetensors"))[: 1 + weights]:
        if not any(folder.glob(pattern)):
            raise ValueError(f"model is the folder {str(folder)!r}, which has no {what} ({pattern})")
    patterns = [pattern for pattern in _FILES if weights or pattern != _WEIGHTS]
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def digest(folder: Path, weights: bool = True) -> str:
    """Names a model by the content of its files, wherever they lie; the arguments and ValueError of `model_files`."""
    return _digest(tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in model_files(folder, weights)))


def check_digest(folder: Path, expected: str, what: str) -> None:
    """Raises ValueError where the files are not those that `digest` has named; `what` says whose they are."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there, and it held {what}: bring it back")
    if (found := digest(folder)) != expected:
        raise ValueError(
            f"{folder} holds other files than those of {what} (sha256 {found[:12]}, expected {expected[:12]}): bring "
            "them back; with other weights below, what was trained would be worth nothing"
        )


def copy_model(folder: Path, target: Path, expected: str, what: str) -> None:
    """Copies the files of a model. Raises ValueError as `check_digest`."""
    check_digest(folder, expected, what)
    target.mkdir(parents=True, exist_ok=True)
    for path in model_files(folder):
        if target.resolve() != folder.resolve():
            shutil.copyfile(path, target / path.name)


@functools.lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, size, _ in files:
        whole.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                whole.update(block)
    return whole.hexdigest()
