"""The section `federation` of a project file: what is refused, and what is in the graph."""

import pytest

from orchestration.definitions import project_definitions
from orchestration.inspection import check
from orchestration.project import ProjectError, load
from training.federation.settings import TOKEN
from training.federation.wire import token_of
from training.spec import plan_runs

SILOS = "federation.silos=[north, south]"
LISTEN, ASK = "federation.listen=127.0.0.1:8765", "federation.coordinator=http://127.0.0.1:8765"


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (
            ["model.output=embedding", "align.label=null"],
            "expected one whose answers have labels",
        ),
        (["model.linear_share=0.3", "model.output=class"], "model.linear_share is 0.3, expected null or 0"),
        (["model.output={kind: class, weights: balanced}"], "model.output.weights is 'balanced', expected none"),
        (["launcher=torchrun"], "launcher is 'torchrun', expected subprocess"),
        (
            [LISTEN, "training.early_stopping=2", "training.evaluations=4"],
            "training.early_stopping is 2, expected null",
        ),
        (["federation.modalities=[text, image]"], "expected with speech, which sources here give"),
        (["features.speech.compression=pca"], "features.speech.compression is .* expected one that is not fitted"),
        (["training.objectives=[answer, contrastive]", "federation.privacy={noise: 1}"], "answer alone beside"),
        (["training.adversary=fgm", "federation.privacy={noise: 1}"], "training.adversary is 'fgm', expected null"),
        (["federation.privacy={noise: 0}"], "federation.privacy: noise is 0.0, expected over 0"),
        (["federation.secure=true"], "federation: combination is 'krum', expected mean where `secure`"),
        ([ASK], "federation: silo is None, expected one of federation.silos"),
        (["federation.aggregation={kind: fedprox, mu: 0}"], "aggregation fedprox: mu is 0.0, expected over 0"),
        (["federation.rouns=3"], "federation.rouns: is not a key that is known here"),
    ],
)
def test_what_silos_cannot_do_is_refused(tiny, overrides, why):
    with pytest.raises(ProjectError, match=why):
        load(tiny, [SILOS, *overrides])


def test_a_silo_may_lack_what_the_model_reads(tiny):
    text = "\n".join(line for line in tiny.read_text().splitlines() if "photos" not in line)
    tiny.write_text(text)
    every = "federation.modalities=[text, image, speech]"
    project = load(tiny, [SILOS, every])
    assert project.modalities == ("text", "speech") and set(project.model.encoders) == {"text", "image", "speech"}
    with pytest.raises(ProjectError, match="by which it is evaluated"):
        load(tiny, [SILOS, every, LISTEN])


def test_the_graph_of_a_silo_has_a_job_of_its_own(tiny):
    plain, silo = load(tiny, [SILOS]), load(tiny, [SILOS, ASK, "federation.silo=north"])
    graphs = {name: project_definitions(of) for name, of in (("plain", plain), ("silo", silo))}
    assert [job.name for job in graphs["plain"].jobs or ()] == ["tiny"]
    assert {job.name for job in graphs["silo"].jobs or ()} == {"tiny", "tiny_silo"}
    made = {k.path[-1] for k in graphs["silo"].resolve_job_def("tiny_silo").asset_layer.executable_asset_keys}
    assert {"manifest", "dataset", "silo"} <= made and not {"model", "champion"} & made
    assert "silo" not in {k.path[-1] for k in graphs["silo"].resolve_job_def("tiny").asset_layer.executable_asset_keys}


def test_a_federated_training_has_a_name_of_its_own(tiny):
    def names(*overrides):
        of = load(tiny, [SILOS, *overrides])
        federation = of.federation if of.federation.listen else None
        return plan_runs(of.model, of.training, of.features, of.modalities, "d", federation=federation)

    plain, federated, again = names(), names(LISTEN), names(LISTEN, "federation.number=2")
    assert len({runs[0].fingerprint for runs in (plain, federated, again)}) == 3
    assert [run.fingerprint for run in plain[1:]] == [run.fingerprint for run in federated[1:]], "baselines stay"
    assert federated[0].training.epochs == 20 and federated[0].federation is not None


def test_check_says_what_a_silo_lacks(tiny, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ValueError, match=f"{TOKEN} is not set: at the coordinator it is a secret"):
        check(load(tiny, [SILOS, ASK, "federation.silo=north"]))
    monkeypatch.setenv(TOKEN, token_of("secret", "north"))
    assert check(load(tiny, [SILOS, ASK, "federation.silo=north"])).problem is None
