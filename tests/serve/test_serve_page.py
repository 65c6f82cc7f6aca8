"""The page of `furnace serve` in a real browser."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from report_study import open_browser
from serve_study import Running, running
from use_study import (  # noqa: F401  fixtures
    packed_movies,
    tridigits_model,
    tridigits_samples,
)

from furnace_hpc.inference import Predictor
from furnace_hpc.inference.batch_predict import to_text

WAIT_MS = 120_000
DROP = """([selector, name, content]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  const event = new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true});
  document.querySelector(selector).closest(".drop").dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest):
    predictor = Predictor.load(request.getfixturevalue("model"), "cpu")
    with running(predictor, max_bytes=2**20) as found:
        yield found


@pytest.fixture
def page(browser, served: Running):
    """The page. A message in its console is an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(served.url)
    yield page
    context.close()
    assert [text for text in problems if "400 (Bad Request)" not in text] == []


def shown(page: Any) -> str:
    """The answer as `furnace predict` prints it, from what the page shows."""
    lines = [page.locator("#used").inner_text()]
    for task in page.locator(".task").all():
        label = task.locator(".label").inner_text()
        lines.append(f"{task.locator('h3').inner_text()}: {label}")
        names = task.locator(".bars dt").all_inner_texts()
        values = task.locator(".bars .p").all_inner_texts()
        rows = list(zip(names, values, strict=True))[:5]
        width = max(len(name) for name, _ in rows)
        lines += [f"  {name:<{width}}  {value:>7}" for name, value in rows]
    return "\n".join(lines)


def given_files(samples: Path) -> dict[str, Any]:
    line = json.loads(samples.read_text().splitlines()[0])
    return {"text": line["text"]} | {
        name: samples.parent / line[name] for name in ("image", "audio")
    }


def test_text_and_picture_are_predicted(page, served: Running, samples: Path):
    """The page shows the digits of `furnace predict`, and which modalities were used."""
    given = given_files(samples)
    page.get_by_label("Text").fill(given["text"])
    page.get_by_label("Picture").set_input_files(given["image"])
    page.get_by_alt_text("the chosen picture").wait_for()
    page.get_by_role("button", name="Predict").click()
    page.locator(".task").first.wait_for()
    answer = served.predictor.predict(text=given["text"], image=given["image"])
    assert shown(page) == to_text(answer, served.predictor.modalities, None)
    assert "from text, image; without audio" in shown(page)
    widths = page.locator("[data-task=digit] .bar").evaluate_all(
        "bars => bars.map(bar => bar.getBoundingClientRect().width / bar.parentElement.clientWidth)"
    )
    probabilities = [*answer.tasks["digit"].probabilities.values()]
    assert widths == pytest.approx(probabilities, abs=0.01)


def test_a_dropped_sound_is_predicted(page, served: Running, samples: Path):
    """Ctrl+Enter sends it. After Clear nothing is left."""
    sound = given_files(samples)["audio"]
    content = base64.b64encode(sound.read_bytes()).decode()
    page.evaluate(DROP, ["#audio", sound.name, content])
    assert page.get_by_text(f"{sound.name}, ").is_visible()
    page.get_by_label("Text").press("Control+Enter")
    page.locator(".task").first.wait_for()
    answer = served.predictor.predict(audio=sound)
    assert shown(page) == to_text(answer, served.predictor.modalities, None)
    page.get_by_role("button", name="Clear").click()
    page.locator(".task").first.wait_for(state="detached")
    assert page.locator("#used").inner_text() == "The answer appears here."
    assert not page.locator("audio").is_visible()


def test_problems_are_shown(page, tmp_path: Path):
    """A file that is no picture, and one that is too large, which is not even sent."""
    broken = tmp_path / "holiday.png"
    broken.write_bytes(b"no picture")
    page.get_by_label("Picture").set_input_files(broken)
    page.get_by_role("button", name="Predict").click()
    problem = page.get_by_role("alert")
    problem.wait_for()
    assert "image 'holiday.png' is unreadable" in problem.inner_text()
    broken.write_bytes(bytes(2**20 + 1))
    page.get_by_label("Picture").set_input_files(broken)
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("The sample has more than 1 MiB").wait_for()
    page.get_by_role("button", name="Remove").click()
    page.get_by_label("Text").fill("it is even")
    page.get_by_role("button", name="Predict").click()
    page.locator(".task").first.wait_for()
    assert not problem.is_visible()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(page, samples: Path, width: int):
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_label("Sound").set_input_files(given_files(samples)["audio"])
    page.get_by_label("Text").fill("word" * 200)
    page.get_by_role("button", name="Predict").click()
    page.locator(".task").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_all_classes_of_many(browser, movies: Path):
    """Ten are shown at first. Those above the threshold are the answer."""
    predictor = Predictor.load(movies / "model", "cpu")
    text = "the detective finds a letter"
    answer = predictor.predict(text=text).tasks["genres"]
    with running(predictor) as served:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(served.url)
        page.get_by_label("Text").fill(text)
        page.get_by_role("button", name="Predict").click()
        page.locator(".task").first.wait_for()
        names = page.locator(".bars dt")
        assert [name.is_visible() for name in names.all()] == [True] * 10 + [False] * 13
        page.get_by_role("button", name="Show all 23 classes").click()
        assert all(name.is_visible() for name in names.all())
        assert names.all_inner_texts() == list(answer.probabilities)
        assert page.locator(".label").inner_text() == ", ".join(answer.labels)
        assert page.locator("dt.in").all_inner_texts() == list(answer.labels)
        assert page.locator(".limit").count() == 23
        page.close()


def test_digits_are_those_of_python(page):
    """Also of exact halves, and of the numbers of a regression."""
    values = [0.0625, 0.0675, 0.0005, 0.1875, 0.5, 1 / 3, 0.00125]
    found = page.evaluate("values => values.map(percent)", values)
    assert found == [f"{100 * value:.1f} %" for value in values]
    numbers = [0, 1.5, 1234567.0, 0.00001234, -2.5e-7, 100000.0, 999999.5, 3.14159265, 1e10, 12.0]
    found = page.evaluate("values => values.map(plainNumber)", numbers)
    assert found == [f"{value:.6g}" for value in numbers]
