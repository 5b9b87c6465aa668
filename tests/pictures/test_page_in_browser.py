"""The run page in Debian's Chromium, opened from the disk, as a reader uses it."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from banding_removal.config.settings import Settings
from banding_removal.metrics.low_signal_view import low_signal_view
from banding_removal.pictures.image_code import STEPS, decode
from banding_removal.pictures.kept_slices import read_slices
from banding_removal.pictures.run_page import NAME, PageWriter, ShownRun, write_run_page
from tests.support.browser import Browser, chromium, needs_chromium, visit
from tests.support.pages import HISTORY, write_run

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("page") / "a run")
    PageWriter(folder, Settings(lr=0.5)).write(HISTORY, {})
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("downloads")) as one:
        yield one


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Browser]:
    open_page(browser, folder / NAME)
    yield browser
    assert browser.get_log("browser") == []  # no errors, nothing refused


def open_page(browser: Browser, path: Path, width: int = 1280, height: int = 800) -> None:
    visit(browser, path, width, height)
    until(lambda: browser.execute_script("return drawn.length > 0"))


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def press(browser: Browser, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def captions(browser: Browser) -> list[str]:
    """What the panes show, once everything is drawn."""
    script = "const done = arguments[0]; draw().then(() => requestAnimationFrame(() => done()))"
    browser.execute_async_script(script)
    return [one.text for one in browser.find_elements(By.TAG_NAME, "figcaption")]


def state(browser: Browser, key: str) -> Any:
    return browser.execute_script(f"return state.{key}")


def grey_values(browser: Browser) -> tuple[int, float]:
    """Number of different grey values on the first pane's canvas, and their mean."""
    captions(browser)
    script = """const pane = document.querySelector("canvas.pane");
        const copy = document.createElement("canvas");
        [copy.width, copy.height] = [pane.width, pane.height];
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(pane, 0, 0);
        const { data } = context.getImageData(0, 0, copy.width, copy.height);
        const values = data.filter((_, i) => i % 4 === 0);
        return [new Set(values).size, values.reduce((a, b) => a + b) / values.length]"""
    number, mean = browser.execute_script(script)
    return number, mean


def shown_values(browser: Browser) -> torch.Tensor:
    """The numbers behind the first pane."""
    captions(browser)
    script = "const { image } = drawn[0]; return [image.height, Array.from(image.values)]"
    height, values = browser.execute_script(script)
    return torch.tensor(values, dtype=torch.float64).view(height, -1)


def test_the_page_opens_from_a_disk_and_asks_no_host(page: Browser) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
    assert page.title == "a run"
    assert captions(page) == ["epoch 3 · phase encode along xSSIM 0.8300"]


def test_the_slider_and_the_keys_go_through_the_epochs(page: Browser) -> None:
    page.find_element(By.ID, "epoch").send_keys(Keys.ARROW_LEFT)
    assert "epoch 2" in captions(page)[0]
    page.find_element(By.TAG_NAME, "h1").click()
    page.execute_script("document.activeElement.blur()")
    press(page, Keys.ARROW_LEFT)
    assert "epoch 1" in captions(page)[0]
    press(page, Keys.ARROW_LEFT)
    assert "epoch 1" in captions(page)[0]
    press(page, Keys.END)
    assert "epoch 3" in captions(page)[0]
    press(page, Keys.HOME, " ")  # play
    until(lambda: state(page, "epoch") == 3)
    press(page, " ")


def test_the_image_has_the_numbers_of_the_run(page: Browser, folder: Path) -> None:
    kept = read_slices(folder)
    press(page, Keys.ARROW_DOWN, "1")
    target = torch.from_numpy(decode(kept.targets["target", 2], (48, 48)) / STEPS)
    torch.testing.assert_close(shown_values(page), target.double(), atol=1e-7, rtol=1e-6)
    press(page, "3")
    along_y = torch.from_numpy(decode(kept.epochs[3].images["y", 2], (48, 48)) / STEPS)
    torch.testing.assert_close(shown_values(page), along_y.double(), atol=1e-7, rtol=1e-6)
    press(page, "4")
    along_x = torch.from_numpy(decode(kept.epochs[3].images["x", 2], (48, 48)) / STEPS)
    torch.testing.assert_close(shown_values(page), along_x - target, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(48, 48), (31, 50)])
def test_the_texture_view_is_the_low_signal_view(page: Browser, size: tuple[int, int]) -> None:
    press(page, "t", Keys.ARROW_UP)
    assert "texture" in captions(page)[0]
    image = torch.rand(size, generator=torch.Generator().manual_seed(0)).double() ** 3
    image[:, :20] *= 0.1
    words = [image.flatten().tolist(), *size]
    script = "return Array.from(lowSignalView(...arguments, PAGE.texture))"
    found = torch.tensor(page.execute_script(script, *words)).view(size).double()
    expected = low_signal_view(image[None, None])[0, 0]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    press(page, "t")
    plain = shown_values(page)
    press(page, "t")
    view = low_signal_view(plain[None, None])[0, 0]
    torch.testing.assert_close(shown_values(page), view, atol=1e-4, rtol=1e-4)


def test_a_narrow_window_shows_streaks_without_steps(page: Browser) -> None:
    press(page, Keys.ARROW_UP, "2")
    page.execute_script("setWindow(0.1, 0.1)")  # 10 % of the range
    assert grey_values(page)[0] > 200  # grey values: 8-bit data would leave 26
    press(page, "i")  # and this without interpolation between pixels
    assert grey_values(page)[0] > 200


def test_dragging_changes_window_and_level_which_stay_when_one_flips(page: Browser) -> None:
    canvas = page.find_element(By.CSS_SELECTOR, "canvas.pane")
    assert state(page, "windows.grey") == [0, 1]
    _, before = grey_values(page)
    ActionChains(page).drag_and_drop_by_offset(canvas, -100, 0).perform()
    low, high = state(page, "windows.grey")
    assert high - low == pytest.approx(1 / torch.e**0.5, rel=0.05)
    assert (low + high) / 2 == pytest.approx(0.5)
    ActionChains(page).drag_and_drop_by_offset(canvas, 0, -60).perform()  # up: brighter
    assert sum(state(page, "windows.grey")) / 2 < 0.45
    assert grey_values(page)[1] > before
    kept = state(page, "windows.grey")
    press(page, Keys.ARROW_LEFT, Keys.ARROW_DOWN, "3")
    assert state(page, "windows.grey") == kept
    press(page, "l")
    assert state(page, "windows.grey") == [0, 0.25]
    assert page.find_element(By.ID, "low").get_attribute("aria-pressed") == "true"
    press(page, "l")
    assert state(page, "windows.grey") == [0, 1]
    press(page, "[", ",")
    assert state(page, "windows.grey") != [0, 1]
    press(page, "f")
    assert state(page, "windows.grey") == [0, 1]


def test_zoom_and_pan_stay_when_one_flips_and_after_a_reload(page: Browser) -> None:
    canvas = page.find_element(By.CSS_SELECTOR, "canvas.pane")
    press(page, "+", "+", "d")
    assert state(page, "zoom") == pytest.approx(1.5625)
    ActionChains(page).drag_and_drop_by_offset(canvas, 60, 30).perform()
    center = state(page, "center")
    assert center[0] < 0.5 and center[1] < 0.5
    press(page, Keys.ARROW_LEFT, "1", "t")
    assert state(page, "center") == center and state(page, "zoom") == pytest.approx(1.5625)
    press(page, "d")
    until(lambda: '"drag":"window"' in page.execute_script("return decodeURIComponent(location)"))
    page.refresh()
    until(lambda: page.execute_script("return drawn.length > 0"))
    assert state(page, "center") == center and state(page, "epoch") == 2
    press(page, "0")
    assert state(page, "center") == [0.5, 0.5] and state(page, "zoom") == 1
    origin = ScrollOrigin.from_element(canvas_of(page))
    ActionChains(page).scroll_from_origin(origin, 0, -200).perform()
    assert state(page, "zoom") > 1.3


def canvas_of(page: Browser) -> Any:
    return page.find_element(By.CSS_SELECTOR, "canvas.pane")


@pytest.mark.parametrize(
    ("key", "pair"),
    [
        ("q", {"epoch 3 · phase encode along x", "target"}),
        ("w", {"epoch 3 · phase encode along x", "epoch 3 · phase encode along y"}),
        ("e", {"epoch 3 · phase encode along x", "epoch 2 · phase encode along x"}),
    ],
)
def test_blinking_alternates_two_images(page: Browser, key: str, pair: set[str]) -> None:
    press(page, Keys.ARROW_UP, Keys.ARROW_LEFT, "m", Keys.ARROW_RIGHT)  # epoch 2 is the other one
    page.execute_script("$('rate').value = 250")

    def title() -> str:
        return str(page.execute_script("return document.querySelector('figcaption b').textContent"))

    press(page, key)
    seen = set()
    until(lambda: seen.add(title()) or seen >= pair)  # type: ignore[func-returns-value]
    assert seen == pair
    press(page, "b")
    first = page.execute_script("return [state.blink, state.flipped]")
    press(page, "b")
    assert page.execute_script("return [state.blink, state.flipped]") == [first[0], not first[1]]
    press(page, key)
    assert state(page, "blink") is None


def test_the_page_can_be_used_by_keyboard_alone(page: Browser) -> None:
    names = set()
    for _ in range(60):
        press(page, Keys.TAB)
        script = """const one = document.activeElement;
            const name = one.getAttribute("aria-label") || one.labels?.[0]?.textContent
                || one.textContent;
            return [name, getComputedStyle(one).outlineStyle]"""
        name, outline = page.execute_script(script)
        if name and page.execute_script("return document.activeElement !== document.body"):
            assert outline != "none", name
            names.add(name)
    expected = {"Slice", "Epoch", "Play", "Texture", "Low signal", "Side by side", "Width", "Level"}
    assert names >= expected
    page.find_element(By.ID, "side").send_keys(" ")
    assert len(captions(page)) == 4
    page.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    listed = page.find_element(By.ID, "shortcuts").text
    assert all(word in listed for word in ("blink", "level lower", "Shift+arrows", "Space"))


def test_a_volume_in_one_orientation_says_so(page: Browser) -> None:
    press(page, "3")
    assert "the scanner undersampled this volume" in captions(page)[0]  # slice 1 has no image
    press(page, Keys.ARROW_DOWN)
    assert "undersampled" not in captions(page)[0]


def test_curves_have_hover_values_and_events(page: Browser) -> None:
    plot = page.find_element(By.CSS_SELECTOR, ".plot .u-over")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(page).move_to_element_with_offset(plot, -plot.size["width"] // 2 + 2, 0).perform()
    legend = page.find_element(By.CSS_SELECTOR, ".plot .u-legend")
    until(lambda: "0.4" in legend.text and "0.5" in legend.text)  # losses of epoch 1
    text = page.find_element(By.ID, "events").text
    assert "rollback" in text and "stopped by SIGTERM" in text
    amber = """const c = document.querySelector(".plot canvas");
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let n = 0;
        for (let i = 0; i < d.length; i += 4) n += d[i] > 215 && d[i + 1] < 135 && d[i + 2] < 120;
        return n"""
    assert page.execute_script(amber) > 30  # the line of the stop
    settings = page.find_element(By.ID, "settings").text
    assert "lr 0.5 0.0003" in settings and "cascades" not in settings  # as by default: folded
    assert "</script>" in page.find_element(By.TAG_NAME, "pre").text


def test_single_steps_have_curves_of_their_own(page: Browser) -> None:
    titles = [one.text for one in page.find_elements(By.CLASS_NAME, "u-title")]
    place = titles.index("loss of single steps")
    plot = page.find_elements(By.CSS_SELECTOR, ".plot .u-over")[place]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(page).move_to_element_with_offset(plot, 2 - plot.size["width"] // 2, 0).perform()
    legend = page.find_elements(By.CSS_SELECTOR, ".plot .u-legend")[place]
    until(lambda: "0.1" in legend.text and "0.49" in legend.text)  # step 10 of 100 an epoch


def test_labels_of_an_axis_differ(page: Browser) -> None:
    ticks = [[0.0144, 0.0146, 0.0148], [0.0575, 0.058, 0.0585], [-5, 0, 5], [0.25, 0.5], [1]]
    for values in ticks:
        found = page.execute_script("return labels(null, arguments[0])", values)
        assert [float(text) for text in found] == values


def test_the_error_says_what_its_greys_mean(page: Browser) -> None:
    press(page, "4")
    assert "black -10 %, white +10 % of the volume's maximum" in captions(page)[0]
    press(page, "[")
    assert "black -8.7 %, white +8.7 %" in captions(page)[0]


def test_the_images_before_stage_2_are_the_first(browser: Browser, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=[0, 2], slices=2)
    PageWriter(folder, Settings()).write(HISTORY, {"banding": 2.5})
    open_page(browser, folder / NAME)
    press(browser, Keys.HOME)
    assert captions(browser)[0].startswith("before stage 2 · phase encode along x")
    assert browser.find_element(By.ID, "epoch-text").text == "before stage 2"
    press(browser, "b")
    press(browser, "e", "b")
    assert "before stage 2" in captions(browser)[0]
    assert browser.get_log("browser") == []


def test_a_run_without_slices_has_a_page_without_their_controls(
    browser: Browser, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", epochs=[])
    older = {"lr": 0.5}  # without the other settings
    write_run_page(folder / NAME, [ShownRun(folder, older, HISTORY, False)])
    browser.get((folder / NAME).as_uri())
    browser.get_log("browser")
    assert "No slices are kept" in browser.find_element(By.ID, "viewer").text
    assert not browser.find_element(By.ID, "play").is_displayed()
    press(browser, Keys.ARROW_LEFT, "t", "b", " ")
    assert browser.find_elements(By.CLASS_NAME, "plot")
    changed = browser.find_element(By.CSS_SELECTOR, "#settings tbody").text
    assert changed.split() == ["lr", "0.5", "0.0003"]
    assert browser.get_log("browser") == []


def test_a_phones_width_shows_everything(browser: Browser, folder: Path) -> None:
    open_page(browser, folder / NAME, width=390, height=844)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    script = """return [...document.querySelectorAll("button, select, input, canvas.pane")]
        .filter((one) => one.offsetParent)
        .map((one) => [one.outerHTML, one.getBoundingClientRect()])
        .filter(([, box]) => box.left < 0 || box.right > 390 || box.width < 24)
        .map(([text]) => text)"""
    assert browser.execute_script(script) == []
    clipped = """return [...document.querySelectorAll("button")]
        .filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent)"""
    assert browser.execute_script(clipped) == []
    canvas = canvas_of(browser)
    touch = {"x": canvas.rect["x"] + 100, "y": canvas.rect["y"] + 100}
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    send = "Input.dispatchTouchEvent"
    browser.execute_cdp_cmd(send, {"type": "touchStart", "touchPoints": [touch]})
    moved = {**touch, "x": touch["x"] + 80}
    browser.execute_cdp_cmd(send, {"type": "touchMove", "touchPoints": [moved]})
    browser.execute_cdp_cmd(send, {"type": "touchEnd", "touchPoints": []})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    low, high = state(browser, "windows.grey")
    assert high - low > 1.2
    assert browser.get_log("browser") == []


def test_several_runs_are_linked(browser: Browser, folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", epochs=[2], slices=2)
    runs = [ShownRun(path, {"lr": lr}, HISTORY, False) for path, lr in ((folder, 1), (other, 2))]
    write_run_page(tmp_path / "both.html", runs)
    open_page(browser, tmp_path / "both.html")
    assert [text[:18] for text in captions(browser)] == [
        "a run · epoch 3 · ",
        "other · epoch 2 · ",
    ]
    press(browser, Keys.ARROW_DOWN)
    assert "does not show this slice" in captions(browser)[1]
    press(browser, Keys.ARROW_UP, "+", "l")
    first, second = browser.find_elements(By.CSS_SELECTOR, "canvas.pane")
    assert first.size == second.size
    assert "other: val_loss" in browser.find_element(By.ID, "curves").text
    assert browser.get_log("browser") == []
