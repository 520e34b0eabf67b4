"""Inception and the choice of the net that judges; what needs torch-fidelity is skipped where it is not installed.

Random weights in the true file format stand in for the published ones, which no test downloads.
"""

import hashlib
import importlib.util
import time
from pathlib import Path

import pytest
import torch

from ebmlib.metrics import images as metrics
from ebmlib.metrics import inception as standard
from ebmlib.metrics.features import Judge

HAS_FIDELITY = importlib.util.find_spec("torch_fidelity") is not None
needs_fidelity = pytest.mark.skipif(
    not HAS_FIDELITY, reason="torch-fidelity is not installed: pip install 'ebmlib[fid]'"
)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No weights in sight, no cache of the user's, and every address refuses at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("EBM_DATA", raising=False)
    monkeypatch.setattr(standard, "URL", "http://127.0.0.1:9/" + standard.NAME)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """torch-fidelity's own net with random weights, and a file of its state dict."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):  # keeps the random weights
            pass

    folder = tmp_path_factory.mktemp("weights")
    torch.save({}, folder / "none.pth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Unloaded("inception-v3-compat", ["2048", "logits_unbiased"], str(folder / "none.pth"))
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # else its layers shrink every signal to 1e-7
                module.running_var.fill_(0.12)
    torch.save(net.state_dict(), folder / "random.pth")
    return net, folder / "random.pth"


def as_standard(monkeypatch, path: Path) -> None:
    """Let the random weights be the published ones."""
    monkeypatch.setattr(standard, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def hub(tmp_path: Path) -> Path:
    return tmp_path / "torch" / "hub" / "checkpoints" / standard.NAME


def images(n: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, side, side), generator=rng, dtype=torch.uint8)


@needs_fidelity
def test_features_and_classes_are_torch_fidelitys(made):
    net, path = made
    state = torch.get_rng_state()
    ours = standard.load(path)
    assert torch.get_rng_state().equal(state), "loading draws nothing from the global generator"
    x = images(3)
    with torch.no_grad():
        features, logits = net(x)
    assert features.std() > 1e-3, "the random net tells images apart"
    found = metrics.extract(ours, x)
    assert found.shape == (3, ours.num_features)
    torch.testing.assert_close(found, features)
    torch.testing.assert_close(ours.classes(found), logits)
    torch.testing.assert_close(metrics.extract(ours, x / 127.5 - 1, batch=2), features, rtol=1e-4, atol=1e-6)
    gray = images(2, channels=1, side=28)
    torch.testing.assert_close(metrics.extract(ours, gray), metrics.extract(ours, gray.expand(-1, 3, -1, -1)))


@needs_fidelity
def test_scores_on_it_are_those_of_its_features(made):
    net, path = made
    ours, x = standard.load(path), images(8)
    with torch.no_grad():
        features, logits = net(x)
    score = metrics.inception_score(x, ours, splits=2, rng=torch.Generator().manual_seed(1))
    p = logits.double().softmax(1)[torch.randperm(8, generator=torch.Generator().manual_seed(1))].reshape(2, 4, -1)
    parts = (p * (p.log() - p.mean(1, keepdim=True).log())).sum(2).mean(1).exp()
    assert score == pytest.approx((parts.mean().item(), (parts.std() / 2**0.5).item()), rel=1e-6)
    assert score[0] > 1.01, "the images differ to it"
    assert metrics.fid(x[:4], x[4:], ours) == pytest.approx(metrics.fid(features[:4], features[4:]), rel=1e-3)


@needs_fidelity
def test_only_the_published_weights_give_plain_names(made, monkeypatch):
    _, path = made
    short = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    ours = standard.load(path)
    assert metrics.score_name("FID", ours) == f"FID (Inception with weights {short} features)"
    assert metrics.score_name("IS", ours, (3, 32, 32)) == f"IS (Inception with weights {short} classes)"
    as_standard(monkeypatch, path)
    ours = standard.load(path)
    assert [metrics.score_name(name, ours, (3, 32, 32)) for name in ("FID", "KID", "IS")] == ["FID", "KID", "IS"]


@needs_fidelity
@pytest.mark.parametrize("place", ["TORCH_HOME", "EBM_DATA"])
def test_weights_are_found_without_a_network(made, monkeypatch, tmp_path, place):
    _, path = made
    as_standard(monkeypatch, path)
    monkeypatch.setenv("EBM_DATA", str(tmp_path / "own"))
    file = hub(tmp_path) if place == "TORCH_HOME" else tmp_path / "own" / "checkpoints" / standard.NAME
    file.parent.mkdir(parents=True)
    file.symlink_to(path)
    net, why = metrics.judge("fashion_mnist", 1, standard=True)
    assert isinstance(net, standard.Inception)
    assert "Judged by the standard Inception" in why
    kept = metrics.reference(images(2), net)
    assert kept.equal(metrics.extract("inception", images(2)))
    assert len(list((tmp_path / "cache" / "ebmlib" / "statistics").iterdir())) == 1


@needs_fidelity
def test_weights_are_downloaded_once_into_torchs_folder(made, monkeypatch, tmp_path, capsys):
    _, path = made
    as_standard(monkeypatch, path)
    monkeypatch.setattr(standard, "URL", path.as_uri())
    assert standard.load().standard
    assert hashlib.sha256(hub(tmp_path).read_bytes()).hexdigest() == standard.SHA256
    assert [file.name for file in hub(tmp_path).parent.iterdir()] == [standard.NAME]
    assert capsys.readouterr().out.startswith(f"Downloading {standard.NAME} to {hub(tmp_path).parent}")
    monkeypatch.setattr(standard, "URL", "http://127.0.0.1:9/")
    assert standard.load().standard
    assert not capsys.readouterr().out


@needs_fidelity
def test_other_weights_under_the_standard_name_are_refused(made, tmp_path):
    _, path = made
    hub(tmp_path).parent.mkdir(parents=True)
    hub(tmp_path).symlink_to(path)
    net, why = metrics.judge("fashion_mnist", 1, standard=True)
    assert isinstance(net, Judge)
    assert f"{hub(tmp_path)} is damaged: its SHA-256 is not {standard.SHA256}" in why
    with pytest.raises(RuntimeError, match="is damaged"):
        standard.load()


@needs_fidelity
def test_weights_that_cannot_be_had_leave_fashion_cnn(tmp_path):
    began = time.monotonic()
    net, why = metrics.judge("fashion_mnist", 1, standard=True)
    assert time.monotonic() - began < 20
    assert isinstance(net, Judge)
    assert "refused" in why
    assert str(hub(tmp_path).parent) in why
    assert not list(hub(tmp_path).parent.iterdir())


@needs_fidelity
@pytest.mark.parametrize("content", ["nothing", "text", "another net"])
def test_a_file_of_something_else_is_one_sentence(tmp_path, content):
    path = tmp_path / "file.pth"
    path.write_bytes({"nothing": b"", "text": b"weights"}.get(content, b""))
    if content == "another net":
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match="does not hold the weights of Inception: ") as caught:
        standard.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(HAS_FIDELITY, reason="torch-fidelity is installed")
def test_without_torch_fidelity_fashion_cnn_judges_and_says_so(tmp_path):
    net, why = metrics.judge("fashion_mnist", 1, standard=True)
    assert isinstance(net, Judge)
    assert "Fashion-CNN" in why
    assert "pip install 'ebmlib[fid]'" in why
    assert not (tmp_path / "torch").exists(), "no weights are fetched that nothing can read"
    with pytest.raises(RuntimeError, match=r"need torch-fidelity \(pip install 'ebmlib\[fid\]'\)"):
        metrics.fid(images(2), images(2), "inception")
