"""Every backend is listed, named and loaded; a broken one affects only itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from attnbench.backend import entries, registry, resolve
from attnbench.errors import BackendUnavailable, UnknownBackend

GOOD = """
from attnbench.backend import Backend, Capabilities

class Good(Backend):
    capabilities = Capabilities()
    def prepare(self, case, inputs):
        raise NotImplementedError("nothing")

backend = Good()
"""


def test_the_bundled_backends_are_listed_by_file_name() -> None:
    names = {entry.name for entry in entries()}
    wanted = {"naive", "sdpa_math", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "flex", "torch_mha"}
    assert wanted | {"per_head", "mask_multiply", "xformers_cutlass", "flash_attn"} <= names
    assert not any(name.startswith("_") for name in names)


def test_a_missing_library_is_said_with_the_command_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text(
        'REQUIRES = {"no_such_library": "pip install no-such"}\nimport no_such_library\n'
    )
    (entry,) = entries(tmp_path)[:1]
    assert (entry.available, entry.reason, entry.install) == (
        False,
        "no_such_library is not installed",
        "pip install no-such",
    )
    with pytest.raises(BackendUnavailable, match="to have it: pip install no-such"):
        resolve("needy", tmp_path)


def test_listing_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("raise SystemExit('imported by the list')\n")
    assert "loud" in {entry.name for entry in entries(tmp_path)}


@pytest.mark.parametrize("body", ["def broken(:\n", "1 / 0\n", "import no_such_library\n", "value = 3\n"])
def test_a_broken_backend_costs_only_itself(tmp_path: Path, body: str) -> None:
    (tmp_path / "broken.py").write_text(body)
    (tmp_path / "good.py").write_text(GOOD)
    assert {"broken", "good"} <= {entry.name for entry in entries(tmp_path)}
    assert resolve("good", tmp_path).name == "good"
    with pytest.raises(BackendUnavailable, match="broken"):
        resolve("broken", tmp_path)


def test_two_folders_hold_two_versions_of_one_name(tmp_path: Path) -> None:
    for version in ("base", "head"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "_shared.py").write_text(f"VERSION = {version!r}\n")
        body = GOOD + "from ._shared import VERSION\nGood.version = lambda self: VERSION\n"
        (tmp_path / version / "mine.py").write_text(body)
    assert [resolve("mine", tmp_path / v).version() for v in ("base", "head")] == ["base", "head"]


def test_an_unknown_name_gets_the_nearest_and_the_installed_ones() -> None:
    with pytest.raises(
        UnknownBackend, match=r"no backend called 'sdap_math'; did you mean 'sdpa_math'\?.*naive"
    ):
        resolve("sdap_math")


def test_a_function_in_a_file_is_a_backend_under_the_name_as_given(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def attention(q, k, v, *, mask, scores, scale):\n    return q\n")
    backend = resolve(f"{file}:attention")
    assert backend.name == f"{file}:attention"
    assert backend.capabilities.contract == "flash"
    assert resolve(f"{file}:attention", contract="dense").capabilities.contract == "dense"
    with pytest.raises(UnknownBackend, match="did you mean 'attention'"):
        resolve(f"{file}:attentoin")
    with pytest.raises(UnknownBackend, match="no file"):
        resolve(f"{tmp_path}/other.py:attention")


def distribution(folder: Path, name: str, value: str, module: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[attnbench.backends]\n{value}\n")
    (folder / f"{value.split('=')[1].strip().split(':')[0]}.py").write_text(module)


def test_third_party_backends_come_by_entry_point_and_a_clash_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = "def attention(q, k, v, *, mask, scores, scale):\n    return q\n"
    distribution(tmp_path, "their-attention", "theirs = their_module:attention", function)
    distribution(tmp_path, "rude-attention", "naive = rude_module:attention", "raise RuntimeError('rude')\n")
    distribution(
        tmp_path, "broken-attention", "brokenness = broken_module:attention", "raise RuntimeError('no')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    listed = {entry.name: entry for entry in entries()}
    assert listed["theirs"].available
    assert listed["naive"].available
    assert "taken by" in listed["rude-attention:naive"].reason
    assert resolve("theirs").name == "theirs"
    with pytest.raises(BackendUnavailable, match="brokenness cannot be loaded: RuntimeError: no"):
        resolve("brokenness")
    for name in ("their_module", "broken_module"):
        sys.modules.pop(name, None)


def test_the_requirements_of_a_file_are_read_without_running_it(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text('raise SystemExit\nREQUIRES = {"a": "pip install a"}\n')
    assert registry._requirements(file) == {"a": "pip install a"}
