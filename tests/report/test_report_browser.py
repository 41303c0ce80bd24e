"""The page in a real browser: what is painted where, and that the browser has nothing to mend, load or run."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from html_tree import Document
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from numpy.typing import NDArray
from recorded import EVALUATIONS, MACHINE, job, lines, start, step, timed, write_run

from draco import report
from draco.report import figures, page, series

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no browser: apt-get install chromium")

HOSTILE = "</title><script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"
PROBE = """<script>addEventListener("load", () => {
  const places = [...document.images].map(i => { const r = i.getBoundingClientRect();
    return [r.left, r.top, r.width, r.height, i.naturalWidth, i.naturalHeight]; });
  document.title = JSON.stringify([places, document.documentElement.scrollHeight]);
});</script>"""
# What each worker was at each step; the letters are those of `KINDS`.
MAP = ["hcmash", "hhhlcc", "chhhsm", "lllhha"]
KINDS = {"h": "honest", "c": "caught", "m": "missed", "a": "falsely accused", "s": "straggling", "l": "lost"}
SIZE = (1100, 4200)


class Shot(NamedTuple):
    dom: str
    pixels: NDArray[np.float64]  # (height, width, 3), 0 to 1


@pytest.fixture(scope="module")
def shoot(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Shot]:
    """Return `shoot(page, *options)`, which opens a page and returns its elements and what is to be seen of it."""
    home = tmp_path_factory.mktemp("browser")

    def opened(path: Path, *options: str) -> Shot:
        assert BROWSER
        target = home / "shot.png"
        target.unlink(missing_ok=True)
        argv = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb",
            "--disable-dev-shm-usage", "--force-device-scale-factor=1", f"--user-data-dir={home}",
            f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={target}", "--dump-dom", *options, path.as_uri(),
        ]  # fmt: skip
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True, encoding="utf-8")
        return Shot(ended.stdout, imread(target)[:, :, :3].astype(np.float64))

    return opened


def events() -> list[dict[str, Any]]:
    """A run of the workers of `MAP`, interrupted after step 4."""
    found = [start(job(workers=len(MAP)), machine={**MACHINE, "cpu": HOSTILE})]
    for at in range(len(MAP[0])):
        kinds = {rank: row[at] for rank, row in enumerate(MAP, start=1)}
        who = {kind: [rank for rank, own in kinds.items() if own == kind] for kind in KINDS}
        lists = {"suspects": who["c"] + who["a"], "byzantine": who["c"] + who["m"]}
        found.append(step(at + 1, 2.0 / (at + 1), **lists, lost=who["l"], straggling=who["s"]))
        if at == 3:
            found.append({"event": "interruption", "cause": HOSTILE, "nodes": {}, "ranks": []})
    return timed(found)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs"), lines(events()), "failed", HOSTILE)
    return page.write([report.read(run)])


def near(pixel: NDArray[np.float64], colour: str) -> bool:
    return bool(np.abs(pixel - to_rgb(colour)).max() < 0.03)


def test_the_browser_mends_nothing_and_runs_nothing(written: Path, shoot: Callable[..., Shot]) -> None:
    shot = shoot(written, "--blink-settings=preferredColorScheme=0")  # dark
    source, seen = Document(written.read_text(encoding="utf-8")), Document(shot.dom)
    assert seen.words == source.words
    assert "taken over" in seen.text  # as text, and as nothing else
    assert seen.rows("worker")[1] == ["1", "2", "1", "0", "1", "1", "1"]
    assert seen.rows("state")[3] == ["accuracy", "90.00% of 1,000 test samples after step 3 (top-5 99.00%, loss 0.25)"]
    assert near(shot.pixels[5, 5], "#16181b")


def test_a_script_would_not_run_even_if_it_got_into_the_page(
    written: Path, tmp_path: Path, shoot: Callable[..., Shot]
) -> None:
    copy = tmp_path / "page.html"
    copy.write_text(written.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    assert "<title>Draco: small</title>" in shoot(copy).dom


def test_figures_are_painted_where_they_belong(written: Path, tmp_path: Path, shoot: Callable[..., Shot]) -> None:
    copy = tmp_path / "page.html"
    text = written.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    policy = text[text.index('<meta http-equiv="Content-Security-Policy"') :].split("\n")[0]
    copy.write_text(text.replace(policy, ""), encoding="utf-8")
    shot = shoot(copy)
    title = shot.dom[shot.dom.index("<title>") + 7 : shot.dom.index("</title>")]
    places, height = json.loads(title)
    assert height <= SIZE[1]  # all of it is in the picture
    assert near(shot.pixels[5, 5], "#ffffff")
    assert len(places) == 4
    for left, top, width, tall, *natural in places:
        assert [width, tall] == natural
        assert left + width <= SIZE[0] - left + 1  # in the middle, not cut off
        assert top > 0
    pictures = [shot.pixels[round(y) : round(y + h), round(x) : round(x + w)] for x, y, w, h, *_ in places]
    of = series.series(events(), EVALUATIONS)
    _check_curves(pictures[0])
    _check_heat_map(pictures[1], of)
    _check_seconds(pictures[2], of)


def at(figure: figures.Figure, picture: NDArray[np.float64], index: int, x: float, y: float) -> NDArray[np.float64]:
    """Return the pixel of a picture at the coordinates of one of its figure's axes."""
    across, up = figure.axes[index].transData.transform((x, y))
    return picture[round(len(picture) - up), round(across)]


def _check_heat_map(picture: NDArray[np.float64], of: series.Series) -> None:
    figure = figures.suspects(of)
    figures.encoded(figure, "png")  # lays it out
    for rank, row in enumerate(MAP, start=1):
        for number, kind in enumerate(row, start=1):
            for aside in (-0.35, 0.0, 0.35):
                pixel = at(figure, picture, 0, number + aside, rank + aside)
                assert near(pixel, figures.COLOURS[KINDS[kind]]), (rank, number, kind, pixel)


def _check_seconds(picture: NDArray[np.float64], of: series.Series) -> None:
    figure = figures.seconds(of)
    figures.encoded(figure, "png")
    for number in range(1, 7):
        assert near(at(figure, picture, 0, number + 0.2, 47), figures._PARTS["compute"])
        assert near(at(figure, picture, 0, number + 0.2, 145), figures._PARTS["decode"])
        assert near(at(figure, picture, 0, number + 0.2, 175), "#ffffff")


def _check_curves(picture: NDArray[np.float64]) -> None:
    """Look for the run's colour in each quarter: loss and accuracy, by step and by time."""
    line = np.abs(picture - to_rgb(figures._LINES[0])).max(2) < 0.03
    tall, wide = line.shape
    for rows in (slice(0, tall // 2), slice(tall // 2, tall)):
        for columns in (slice(0, wide // 2), slice(wide // 2, wide)):
            assert line[rows, columns].sum() > 100
