"""What holds for the project as a whole: the import arrow, the version, the documented commands."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import vafer
from vafer import catalogue, cli, store
from vafer.model import load_model
from vafer.onnx_file import detector_card
from vafer.probe import VIDEO_SUFFIXES
from vafer.table import SCHEMA, VIDEOS_SCHEMA

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "vafer").rglob("*.py"))
LEAVES = {"errors", "metrics"}
WITH_RICH_OR_TYPER = {"cli", "console"}


def imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def is_exempt(node: ast.stmt) -> bool:
    """The command `train` may import the package inside; and a type checker sees what it wants."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
        return node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef) and node.name == "train"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_arrows_point_one_way(path: Path) -> None:
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not is_exempt(node)]
    packages = {name.split(".")[0] for name in imports(tree)}
    assert "train" not in packages
    if path.stem in LEAVES:
        assert "vafer" not in packages
    if path.stem not in WITH_RICH_OR_TYPER:
        assert not {"rich", "typer"} & packages


def test_importing_vafer_is_light() -> None:
    code = "import vafer, sys; print({'torch', 'polars', 'av', 'cv2'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


def test_every_public_name_is_there() -> None:
    for name in vafer.__all__:
        assert getattr(vafer, name).__module__.startswith("vafer")
    with pytest.raises(AttributeError, match="nonesuch"):
        vafer.nonesuch  # noqa: B018


def test_one_version() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == vafer.__version__
    assert f"version: {vafer.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {vafer.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_option_and_column_is_documented() -> None:
    group = get_command(cli.app)
    for name, command in group.commands.items():
        text = (ROOT / "docs" / f"{name}.md").read_text()
        below = getattr(command, "commands", {})  # of a group, as `models`
        parameters = [*command.params, *(p for one in below.values() for p in one.params)]
        for one in below:
            assert f"`vafer {name} {one}" in text, one
        for parameter in parameters:
            option = max(parameter.opts, key=len)
            assert f"`{option}" in text or not option.startswith("--"), option
        documented = set(re.findall(r"`(--[a-z-]+)", text))
        assert documented <= {o for p in parameters for o in p.opts} | {"--help"}
    table = (ROOT / "docs" / "table.md").read_text()
    for column in (*SCHEMA.names, *VIDEOS_SCHEMA.names):
        assert f"`{column}`" in table, column


def test_every_ending_is_documented() -> None:
    text = (
        (ROOT / "docs" / "annotate.md").read_text().split("files ending in")[1].split("Hidden")[0]
    )
    assert {f".{ending}" for ending in text.replace(".", " ").split()} == VIDEO_SUFFIXES


def test_links_in_the_documentation_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *store.WEIGHTS.glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_embedded_model_loads_and_has_its_card() -> None:
    assert store.DEFAULT_MODEL in store.embedded_models()
    for name in store.embedded_models():
        path = store.find_model(name)
        model = load_model(path)
        assert model.card.name == name
        assert model.card.licence == "Apache-2.0"
        assert path.stat().st_size <= 8e6
        card = path.with_suffix(".md").read_text()
        metrics = model.card.metrics
        for dimension in ("valence", "arousal"):
            for faces in ("fer_test", "lfw_test"):
                assert f"{metrics[faces][dimension]['ccc']:.3f}" in card, (faces, dimension)
        assert len(metrics["scores"]) == 4
        for row in metrics["scores"]:
            for score in ("RMSE", "SAGR", "PCC", "CCC"):
                value, low, high = row[score]
                assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in card, (row, score)
        assert metrics["expressions"]
        assert metrics["groups"]


def test_every_card_is_in_its_file() -> None:
    """After a change: `python -m train.embed FILE NAME`."""
    for name in (*store.embedded_models(), *store.embedded_detectors()):
        text = next(store.WEIGHTS.glob(f"{name}.md")).read_text(encoding="utf-8")
        assert catalogue.info(name).text == text, name
        for said in ("What it is not", "licence", "```", "decide anything about a person"):
            assert said in text, (name, said)


def test_a_detectors_card_says_what_its_file_holds() -> None:
    for name in store.embedded_detectors():
        path = store.WEIGHTS / f"{name}.onnx"
        card, metrics = path.with_suffix(".md").read_text(), detector_card(path)["metrics"]
        for kind in ("held out", "trained on"):
            found = metrics[kind]
            low, high = (f"{100 * value:.1f}" for value in found["recall_ci"])
            share, n_faces = f"{100 * found['recall']:.1f}", f"{found['faces']:,}"
            in_words = f"{share} % [{low}, {high}] of {n_faces} faces"
            assert in_words in card or f"| all | {n_faces} | {share} [{low}, {high}] |" in card
        for row in metrics["held out"]["recordings"]:
            low, high = (f"{100 * value:.1f}" for value in row["recall_ci"])
            share = "100" if row["recall"] == 1 else f"{100 * row['recall']:.1f} [{low}, {high}]"
            near = f"{row['mean_iou']:.3f} | {row['landmark_error_median']:.3f}".replace("0.", ".")
            recording = row["recording"].split(".")[0]
            assert f"| {recording} | {row['faces']} | {share} | {near} |" in card
        false = [found for found in metrics.values() if "false_per_100" in found]
        assert len(false) == 5
        for found in false:
            of_100, (low, high) = found["false_per_100"], found["false_per_100_ci"]
            shown = f"{of_100:.1f} [{low:.1f}, {high:.1f}]" if of_100 else f"0 [0, {high:.1f}]"
            assert f"| {found['pictures']} | {found['false']} | {shown} |" in card
