"""``trtprune show``: budgets in columns, answers under panels, merged tokens as merged, and letters of any script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from PIL import Image

import trtprune
from tests.kit.runtime_kit import Kit, picture
from tests.show.test_overlay import bright, noise
from trtprune import pruning
from trtprune.cli import main
from trtprune.errors import InputError
from trtprune.pruning import recycling
from trtprune.show import fonts, overlay, panels
from trtprune.show.overlay import MERGED, OUTLINE, TINTS
from trtprune.show.panels import answer_under, panel_size
from trtprune.show.text import paragraph, width_of

CJK = "颜色は색"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory of method adafv, and a picture."""
    place = tmp_path_factory.mktemp("place")
    kit = Kit.make(place / "model")
    trtprune.build(str(kit.path), place / "out", method="adafv", keep=5)
    picture(3).save(place / "p.png")
    return place


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system without fonts but for those put into the returned folder."""
    monkeypatch.setattr(fonts, "system_folders", lambda: [tmp_path / "fonts"])
    (tmp_path / "fonts").mkdir()
    forget()
    yield tmp_path / "fonts"
    monkeypatch.undo()
    forget()


def forget() -> None:
    for cached in (fonts.font_for, fonts._installed, fonts._open, fonts._absent):
        cached.cache_clear()


def command(place: Path, *words: Any) -> tuple[int, str, str]:
    given = ["show", place / "out", "--image", place / "p.png", "--threads", "1", *words]
    found = CliRunner().invoke(main, [str(word) for word in given])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


# -- the command


def test_a_row_a_method_and_a_column_a_budget(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "k.png"
    methods = ("adafv", "downsample", "random")
    code, out, err = command(
        place, "--prompt", "What is it ?", "--keep", 6, "--keep", 3, *(w for m in methods for w in ("--method", m)),
        "-o", output, "--json", "--max-new-tokens", 4, "--seed", 1,
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert [(p["method"], p["keep"]) for p in found["panels"]] == [(m, k) for m in methods for k in (6, 3)]
    own = trtprune.load(place / "out", threads=1)
    for panel in found["panels"]:
        assert len(panel["kept_indices"]) == panel["keep"]
        if panel["method"] == "adafv":
            said = own.generate(place / "p.png", "What is it ?", keep=panel["keep"], max_new_tokens=4)
            assert panel["answer"] == said.text.strip()
            assert panel["kept_indices"] == said.kept_indices[0]
        assert ("merged" in panel) == (panel["method"] == "downsample")
    whole = own.generate(place / "p.png", "What is it ?", keep=16, max_new_tokens=4).text.strip()
    assert found["unpruned"] == whole
    cells = [group for p in found["panels"] if p["method"] == "downsample" and p["keep"] == 3 for group in p["merged"]]
    assert sorted(token for group in cells for token in group) == list(range(16))
    with Image.open(output) as drawn:
        assert drawn.width > 3 * panel_size(2)
        shape = Image.open(place / "p.png").size
        high = panel_size(2) * shape[1] / max(shape)
        assert 3 * high < drawn.height < 3 * (high + 100)
    assert not list(tmp_path.glob(".*"))


def test_no_answers(place: Path, tmp_path: Path) -> None:
    code, out, err = command(place, "--keep", 3, "--no-answers", "-o", tmp_path / "k.png", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert "unpruned" not in found
    assert "answer" not in found["panels"][0]
    vlm = trtprune.load(place / "out", threads=1)
    view = vlm.look(place / "p.png", "Describe the image.")
    assert found["panels"][0]["kept_indices"] == [int(i) for i in vlm.select(view, keep=3)]


def test_merged_inside_the_decoder(place: Path, tmp_path: Path) -> None:
    code, out, err = command(
        place, "--prompt", "What is it ?", "--keep", 10, "--keep", 2, "--method", "sparsevlm:schedule=1:6", "--method",
        "random", "-o", tmp_path / "k.png", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert [(p["method"].split()[0], p["keep"]) for p in found["panels"]][-2:] == [("random", 10), ("random", 2)]
    inside = [p for p in found["panels"] if p["method"].startswith("sparsevlm")]
    for panel in inside:
        kept, merged = panel["kept_indices"], panel["merged"]
        assert len(kept) == 6
        assert not {token for group in merged for token in group} & set(kept)
    assert [panel["keep"] for panel in inside] == [10]
    assert "sparsevlm schedule=1:6 at 2: --keep 2: outside" in err, "a budget that one method cannot serve is said"


def test_where_nothing_can_be_built(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of engines, or without what builds: references select, merged tokens are known, unpruned is answered."""

    def build(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr("trtprune.compiler.building.build", build)
    methods = ("--method", "adafv", "--method", "downsample")
    code, out, err = command(place, "--keep", 3, *methods, "-o", tmp_path / "k.png", "--json", "--max-new-tokens", 4)
    assert code == 0, err
    found = json.loads(out)
    own, other = found["panels"]
    assert "answer" in own
    assert "answer" not in other
    assert sorted(token for group in other["merged"] for token in group) == list(range(16))
    assert "unpruned" in found
    assert "downsample: selected by its NumPy reference, and no answer: No module named 'onnx'" in err
    assert "unpruned: adafv with all 16 tokens" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "nowhere/k.png"], "-o nowhere/k.png: there is no directory nowhere"),
        (["-o", "k.txt"], "-o k.txt: not a kind of picture that can be written"),
        (["-o", "."], "is a directory"),
        (["--font", "none.ttf"], "--font none.ttf: no font that can be read"),
        (["--keep", "99"], "--keep 99"),
        (["--method", "adavf"], "did you mean adafv?"),
    ],
)
def test_what_is_refused(
    place: Path, tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] in ("-o", "--font"):
        monkeypatch.setattr("trtprune.variants.Variants.open", lambda *_: pytest.fail("a model was loaded"))
    code, out, err = command(place, *words)
    assert (code, out) == (1, ""), err
    assert said in err
    assert not list(tmp_path.iterdir())


def test_the_default_picture_is_said_to_be_replaced(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for times in range(2):
        code, out, err = command(place, "--no-answers")
        assert (code, out) == (0, "kept.png\n")
        assert ("kept.png that was here is replaced" in err) == bool(times)


# -- where tokens went, against the rows that come out


def test_downsample_and_trim_and_visionzip_say_what_they_merged() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(36, 8)).astype(np.float32)
    given: dict[str, dict[str, Any]] = {
        "downsample": {"grid": (6, 6)},
        "visionzip": {
            "cls_attention": rng.random(36), "vision_keys": rng.normal(size=(36, 4)),
            "cls_feature": rng.normal(size=8), "merge": "mean", "contextual": 0.5,
        },
        "trim": {"clip_image_embeds": rng.normal(size=(36, 5)), "clip_text_embeds": rng.normal(size=(2, 5))},
    }  # fmt: skip
    assert given.keys() == {m.name for m in pruning.all_methods() if m.merges}
    for name, inputs in given.items():
        method = pruning.get(name)
        for keep in (1, 4, 9, 35, 36):
            _, rows = method.pruned(features, keep=keep, **inputs)
            where = method.merged_into(features, keep=keep, **inputs)
            means = [features[where == target].mean(axis=0) for target in np.unique(where[where >= 0])]
            if name == "visionzip":
                rows = rows[1:]  # the CLS token
            assert len(means) == len(rows), (name, keep)
            for mean in means:
                assert np.abs(rows - mean).max(axis=1).min() < 1e-5, (name, keep)
    plain = pruning.get("divprune").merged_into(features, keep=5)
    assert sorted(plain[plain >= 0]) == list(pruning.get("divprune").reference(features, keep=5))


def test_sparsevlm_says_what_it_recycles() -> None:
    rng = np.random.default_rng(1)
    visual, attention = rng.normal(size=(60, 8)).astype(np.float32), rng.random((3, 60)).astype(np.float32)
    method = pruning.get("sparsevlm")
    assert isinstance(method, pruning.InLlmMethod)
    kept, merged = method.point(visual, attention, keep=10)
    clusters = method.clusters(visual, method.rate(attention), kept)
    assert clusters.max() + 1 == len(merged) == recycling.merged_counts(50, 0.3)[1]
    assert (clusters[kept] == -1).all()
    for number, row in enumerate(merged):
        assert np.allclose(visual[clusters == number].mean(axis=0), row, atol=1e-4)


# -- drawing


def test_merged_patches_are_tinted_and_outlined_as_one() -> None:
    image = noise(64, 64)
    into = np.full(16, -1)
    into[[0, 1, 4, 5]], into[[10, 11]], into[15] = 0, 10, 15
    shown = np.asarray(overlay(image, [0, 10, 15], patch_grid=(4, 4), merged_into=into, size=64)).astype(int)
    group, other, single = shown[:32, :32], shown[32:48, 32:64], shown[48:, 48:]
    given = np.asarray(image).astype(int)
    for part, place, tint in ((group, (slice(0, 32), slice(0, 32)), 0), (other, (slice(32, 48), slice(32, 64)), 1)):
        edge = (part == MERGED).all(-1)
        assert edge[0].all()
        assert edge[:, 0].all()
        assert not edge[1:-1, 1:-1].any(), "lines inside a group"
        wanted = 0.7 * given[place] + 0.3 * np.array(TINTS[tint])
        assert np.abs(part - wanted)[~edge].max() <= 1.5
    assert (single == OUTLINE).all(-1).sum() == 4 * 15
    assert bright(Image.fromarray(shown[48:, 48:].astype(np.uint8)), image.crop((48, 48, 64, 64))).all()


def test_rows_stand_as_they_are_given() -> None:
    image = Image.new("RGB", (40, 40), (10, 200, 30))
    colours = [[(255, 0, 0), (0, 0, 255)], [(255, 255, 0), None], [(0, 255, 255), (255, 0, 255)]]
    tiles = [[None if c is None else Image.new("RGB", (100, 120), c) for c in row] for row in colours]
    sheet = panels(image, tiles, caption="What ?", aside=["unpruned"], size=100)
    pixels = np.asarray(sheet)

    def box(colour: tuple[int, int, int]) -> tuple[int, ...]:
        y, x = np.nonzero((pixels == colour).all(-1))
        return x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()

    boxes = {c: box(c) for row in colours for c in row if c is not None}
    assert {found[2:] for found in boxes.values()} == {(100, 120)}
    lefts = [{boxes[row[k]][0] for row in colours if row[k]} for k in (0, 1)]
    assert [len(left) for left in lefts] == [1, 1], "budgets do not stand under each other"
    assert [len({boxes[c][1] for c in row if c}) for row in colours] == [1, 1, 1]
    assert box((10, 200, 30))[0] < min(lefts[0])


def test_answers_stand_under_their_panel() -> None:
    tile = Image.new("RGB", (200, 100), (0, 0, 0))
    assert answer_under(tile, None) is tile
    same, other = (np.asarray(answer_under(tile, "blue", same=same)).astype(int) for same in (True, False))
    assert same.shape == other.shape
    assert same.shape[0] > 120
    assert (same[100:] < 128).all(-1).sum() > 40
    assert ((other[100:, :, 0] - other[100:, :, 1]) > 100).sum() > 40, "a changed answer is red"
    assert answer_under(tile, "").height > 120


# -- letters


def a_font(path: Path, letters: str, *, name: str = "Test") -> Path:
    """A font whose letters are rectangles, each of another height, and whose .notdef is a cross."""
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", *(f"u{ord(letter):04X}" for letter in letters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):04X}" for letter in letters})
    glyphs = {}
    for number, glyph in enumerate(names):
        pen = TTGlyphPen(None)
        top = 300 if glyph == ".notdef" else 500 + 40 * number
        for corner in ((100, 0), (100, top), (800, top), (800, 0)):
            (pen.moveTo if corner == (100, 0) else pen.lineTo)(corner)
        pen.closePath()
        glyphs[glyph] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def test_the_packages_font_has_what_it_should() -> None:
    """Against its table of letters, read by another library."""
    table = TTFont(fonts.OWN)["cmap"].getBestCmap()
    for text in (
        "De quelle couleur est l’étoile ?",
        "Größe, ångström, żółw, şey",
        "Ελληνικά",
        "Цвет",
        "Tiếng Việt",
        "→×…",
    ):
        assert all(ord(letter) in table for letter in text)
        assert fonts.missing(text) == ""
        assert all(fonts.font_for(letter) == fonts.OWN for letter in text)
    for letter in CJK:
        assert ord(letter) not in table
        assert not fonts._has(fonts.OWN, letter)
    assert (fonts.OWN.parent / "LICENSE_DEJAVU").is_file()
    assert fonts.clean("e\u0301\u200d\x07") == "é"


def test_letters_of_a_system_font(alone: Path) -> None:
    assert fonts.missing(f"a {CJK}") == CJK
    forget()
    found = a_font(alone / "NotoSansCJK-Test.ttf", CJK)
    (alone / "broken.ttf").write_bytes(b"\0" * 100)
    assert fonts.missing(f"a {CJK}") == ""
    pieces = fonts.runs(f"star {CJK} é", 20)
    assert [(text, Path(face.path)) for text, face in pieces] == [
        ("star ", fonts.OWN),
        (f"{CJK} ", found),
        ("é", fonts.OWN),
    ]
    # Each letter is drawn as its own glyph: a rectangle of its height, not the sign for what is missing.
    heights = []
    for letter in CJK:
        rows = np.nonzero((np.asarray(paragraph(letter, 40, size=30)) < 128).all(-1).any(1))[0]
        heights.append(rows.max() - rows.min() + 1)
    assert heights == sorted(heights)
    assert heights[0] > 30 * 0.5
    absent = width_of("\ufffd", 30)
    assert width_of(CJK, 30) == pytest.approx(len(CJK) * 27, abs=1) != len(CJK) * absent


def test_letters_that_no_font_has_are_said(
    alone: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--no-answers", "--prompt", f"What color {CJK} ?", "-o", tmp_path / "k.png")
    code, _, err = command(place, *arguments)
    assert code == 0
    assert f"no font here has {' '.join(CJK)}: drawn as \ufffd" in err
    font = a_font(tmp_path / "mine.ttf", CJK)
    code, _, err = command(place, *arguments, "--font", font)
    assert code == 0
    assert "no font here" not in err


def test_text_without_spaces_is_wrapped() -> None:
    line, more = paragraph("漢" * 9, 200, size=20), paragraph("漢" * 60, 200, size=20, lines=9)
    assert line.height < more.height <= 9 * 27


def test_a_font_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "f.ttf").write_text("no font")
    with pytest.raises(InputError, match="no font that can be read"):
        fonts.check_font(tmp_path / "f.ttf")


# -- the picture of the README


def test_the_readmes_picture_has_true_colours() -> None:
    """Those of the scene itself; a palette had made a red star magenta."""
    root = Path(__file__).parents[2]
    path = root / "docs" / "kept-tokens.png"
    assert path.stat().st_size < 500_000
    scene = np.asarray(Image.open(root / "examples" / "scene.png").convert("RGB")).reshape(-1, 3)
    with Image.open(path) as drawn:
        assert drawn.mode == "RGB"
        pixels = np.asarray(drawn).reshape(-1, 3)
    found, times = np.unique(pixels, axis=0, return_counts=True)
    shown = dict(zip(map(tuple, found.tolist()), times, strict=True))
    colours, counts = np.unique(scene, axis=0, return_counts=True)
    # The objects are of one colour each; the background is noise.
    plain = [tuple(colour) for colour in colours[counts > 300].tolist()]
    assert (225, 32, 36) in plain
    assert len(plain) >= 4
    for colour in plain:
        assert shown.get(colour, 0) > 500, f"{colour} of the scene is not in the picture"
