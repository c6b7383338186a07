"""The page, in a browser: it draws, shows the way, and says what is wrong."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
from held import SOON
from served import Process, in_thread

webdriver = pytest.importorskip("selenium.webdriver")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("fastapi")

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver here")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server(demo, rgb):
    with Process(f"demo={demo}", f"small={rgb}") as running:
        yield running


@pytest.fixture
def page(browser, server):
    browser.get_log("browser")
    browser.get(server.url)
    until(lambda: value(browser, "draw", "disabled") is False)
    yield browser
    assert not browser.get_log("browser"), "nothing that the content security policy forbids, no errors"


def until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def value(browser, name, what):
    return browser.execute_script(f"return document.getElementById('{name}').{what}")


def status(browser):
    return value(browser, "status", "textContent")


def select(browser, name, chosen):
    code = """
        const [name, chosen] = arguments, select = document.getElementById(name);
        select.value = chosen;
        for (const kind of ["input", "change"]) select.dispatchEvent(new Event(kind, {bubbles: true}));"""
    browser.execute_script(code, name, chosen)


def pixels(browser, selector):
    """Of a picture that is shown, (H, W, 4)."""
    code = """
        const image = document.querySelector(arguments[0]);
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0);
        return [canvas.height, canvas.width, [...pen.getImageData(0, 0, canvas.width, canvas.height).data]];"""
    height, width, data = browser.execute_script(code, selector)
    return np.array(data, np.uint8).reshape(height, width, 4)


def test_it_draws_what_is_asked_for_and_shows_the_way(page, demo):
    import l2c_export

    page.execute_script("""
        document.querySelector("#classes button[data-label='7']").click();
        document.getElementById("seed").value = 12;
        window.said = [];
        new MutationObserver(() => window.said.push(document.getElementById("status").textContent))
            .observe(document.getElementById("status"), {childList: true});
        window.cursors = [];
        new MutationObserver(() => window.cursors.push(document.getElementById("cursor").style.left))
            .observe(document.getElementById("cursor"), {attributes: true});""")
    page.find_element("id", "draw").click()
    until(lambda: "in all" in status(page))
    assert " to draw, " in status(page)
    assert [line for line in page.execute_script("return window.said") if line.startswith("step")] == [
        f"step {n} of 20" for n in range(1, 20)
    ]
    assert len({*page.execute_script("return window.cursors")}) >= 19, "the column of the schedule that was computed last"
    with l2c_export.load(demo, threads=1) as pipe:
        wanted = np.asarray(pipe([7], seed=[12], output_type="pil").images[0])
    for picture in ("#picture", "#strip img"):
        shown = pixels(page, picture)
        assert np.array_equal(shown[..., 0], wanted)
        assert (shown[..., 3] == 255).all()
    assert value(page, "picture", "alt") == "demo: 7, seed 12"
    assert value(page, "progress", "value") == 1


def test_one_of_each_class(page):
    select(page, "model", "small")
    until(lambda: "4x4" in value(page, "about", "textContent"))
    page.find_element("id", "draw-all").click()
    until(lambda: "pictures in" in status(page))
    assert status(page).startswith("3 pictures in")
    labels = page.execute_script(
        "return [...document.querySelectorAll('#strip figure')].map((figure) => figure.firstChild.alt[0])"
    )
    assert labels == [str(n) for n in range(3)]


def test_it_shows_what_is_computed(page, demo):
    from l2c_export.inspection.view import inspect

    view = inspect(demo)
    code = """
        const canvas = document.getElementById("cells"), pen = canvas.getContext("2d");
        return [canvas.height, canvas.width, [...pen.getImageData(0, 0, canvas.width, canvas.height).data]];"""
    height, width, data = page.execute_script(code)
    drawn, (rows, calls) = np.array(data, np.uint8).reshape(height, width, 4), (len(view.sublayers), len(view.calls))
    pixels = np.array([[drawn[int((r + 0.4) * height / rows), int((c + 0.4) * width / calls)] for c in range(calls)]
                       for r in range(rows)])  # fmt: skip
    computed = {(n, call.index) for call in view.calls for n in call.computed}
    colours = {
        tuple(pixels[row, call]): (row, call) in computed for row in range(len(pixels)) for call in range(pixels.shape[1])
    }
    assert sorted(colours.values()) == [False, True], "two colours, one of what is computed"
    for row in range(pixels.shape[0]):
        for call in range(pixels.shape[1]):
            assert colours[tuple(pixels[row, call])] == ((row, call) in computed)
    assert "80.0 % are computed" in value(page, "share", "textContent")


def test_another_model_has_another_form(page):
    assert value(page, "steps-field", "hidden")
    select(page, "model", "small")
    until(lambda: "8 calls" in value(page, "share", "textContent"))
    assert not value(page, "steps-field", "hidden")
    select(page, "steps", "4")
    until(lambda: "100.0 % are computed" in value(page, "share", "textContent"))
    assert '"num_inference_steps":4' in value(page, "shell", "textContent")
    page.find_element("id", "draw").click()
    until(lambda: "in all" in status(page))
    assert pixels(page, "#picture").shape == (4, 4, 4)


def test_a_key_is_asked_for_and_used(browser, rgb, monkeypatch):
    with in_thread(rgb, monkeypatch, keys=("k" * 32,)) as running:
        browser.get(running.url)
        until(lambda: not value(browser, "key-field", "hidden"))
        assert "show a key" in status(browser)
        browser.find_element("id", "key").send_keys("k" * 32 + "\t")
        until(lambda: value(browser, "draw", "disabled") is False)
        browser.find_element("id", "draw").click()
        until(lambda: "in all" in status(browser))


def test_it_stops_and_says_what_is_wrong(browser, rgb, monkeypatch):
    with in_thread(rgb, monkeypatch) as running:
        browser.get(running.url)
        until(lambda: value(browser, "draw", "disabled") is False)
        running.held.hold()
        browser.find_element("id", "draw").click()
        running.held.wait_begun(1)
        assert status(browser) == "waiting for a batch"
        browser.find_element("id", "stop").click()
        until(lambda: status(browser) == "stopped")
        until(lambda: running.engine.counts["cancelled"] == 1)
        running.held.let()
        running.held.raises = ValueError("x")
        until(lambda: value(browser, "draw", "disabled") is False)
        browser.find_element("id", "draw").click()
        until(lambda: status(browser) == "the generation failed: the server's log says why")
        assert "wrong" in value(browser, "status", "className")
