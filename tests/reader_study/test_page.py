"""The page in a browser: Chromium and its driver, as Debian packages them."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains

from banding_removal.reader_study.blinding import Reader
from banding_removal.reader_study.key import Key, read_key
from banding_removal.reader_study.make import make_study
from banding_removal.reader_study.ratings import read_ratings
from banding_removal.reader_study.settings import Rating
from tests.support.browser import Browser, chromium, needs_chromium, visit
from tests.support.studies import settings_of, write_sets

pytestmark = needs_chromium
ENTER, SHIFT, RIGHT = "\ue007", "\ue008", "\ue014"
PAINT = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("downloads")) as one:
        yield one


def make(folder: Path, rating: Rating = "rank") -> Key:
    make_study(settings_of(write_sets(folder), rating=rating))
    return read_key(folder / "study")


def press(browser: Browser, keys: str, holding: str = "") -> None:
    """Press keys one after the other, whatever has the focus."""
    actions = ActionChains(browser)
    if holding:
        actions.key_down(holding)
    actions.send_keys(keys)
    if holding:
        actions.key_up(holding)
    actions.perform()


def open_page(browser: Browser, path: Path, size: tuple[int, int] = (1280, 800)) -> None:
    visit(browser, path, *size)
    press(browser, ENTER)  # Start has the focus


def text_of(browser: Browser, name: str) -> str:
    return str(browser.find_element("id", name).text)


def rate_case(browser: Browser, reader: Reader, number: int) -> None:
    """Set 0 is better, except by `noise`: equal."""
    better, worse = ("1", "2") if reader.views[number].sets == (0, 1) else ("2", "1")
    press(browser, better + worse + better + worse + "11" + better + worse)


def saved_file(browser: Browser, folder: Path) -> Path:
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    press(browser, ENTER)  # the button that saves has the focus
    for _ in range(100):
        found = list(folder.glob("ratings_*.json"))
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"nothing was saved in {folder}")


def test_a_study_is_rated_with_keys_alone_reloaded_half_way_and_scored(
    browser: Browser, tmp_path: Path
) -> None:
    key = make(tmp_path)
    page, reader = tmp_path / "study" / "reader_1.html", key.readers[0]
    open_page(browser, page)
    assert text_of(browser, "count") == "Case 1 of 7"
    press(browser, "n")  # not before the case is rated
    assert text_of(browser, "count") == "Case 1 of 7"
    for number in range(4):
        rate_case(browser, reader, number)
        if number < 3:
            press(browser, "n")
    open_page(browser, page)
    assert text_of(browser, "count") == "Case 4 of 7"
    pressed = browser.find_elements("css selector", "[aria-pressed=true]")
    assert len(pressed) == 8
    for number in range(4, 7):
        press(browser, "n")
        rate_case(browser, reader, number)
    press(browser, "n")
    path = saved_file(browser, tmp_path)
    assert path.name == "ratings_reader_1.json"
    assert browser.find_element("id", "text").get_property("value") == path.read_text()
    ratings = read_ratings([path], key)
    assert (ratings.first["banding"] == [1, 2]).all()
    assert (ratings.first["noise"] == 1).all()
    repeated = np.isfinite(ratings.again["overall"])
    assert (ratings.again["overall"][repeated].reshape(-1, 2) == [1, 2]).all()
    assert repeated.sum() == 4
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = {
        event["params"]["request"]["url"].partition(":")[0]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {"file", "data", "blob"}


def test_the_other_readers_page_has_its_own_progress_and_buttons_work(
    browser: Browser, tmp_path: Path
) -> None:
    make(tmp_path, rating="score")
    open_page(browser, tmp_path / "study" / "reader_1.html")
    press(browser, "5" * 8 + "n")
    assert text_of(browser, "count") == "Case 2 of 7"
    open_page(browser, tmp_path / "study" / "reader_2.html")
    assert text_of(browser, "count") == "Case 1 of 7"
    cells = browser.find_elements("css selector", ".cell")
    for cell in cells:
        cell.find_elements("tag name", "button")[2].click()
    browser.find_element("id", "next").click()
    assert text_of(browser, "count") == "Case 2 of 7"
    browser.find_element("id", "previous").click()
    stored = browser.execute_script("return ratings.cases[0].values")
    assert set(stored) == {"banding", "detail", "noise", "overall"}
    assert all(values == [3, 3] for values in stored.values())


def shown_greys(browser: Browser) -> list[int]:
    """Grey values of the image A, as large as the file's."""
    browser.execute_async_script(PAINT)
    pixels = browser.execute_script(
        "const s = viewer.panels[0].source;"
        "return [...s.getContext('2d').getImageData(0, 0, s.width, s.height).data]"
        ".filter((_, i) => i % 4 === 0)"
    )
    return list(pixels)


def test_window_and_zoom_act_on_all_images_and_16_bits_show_no_steps(
    browser: Browser, tmp_path: Path
) -> None:
    make(tmp_path)
    open_page(browser, tmp_path / "study" / "reader_1.html")
    grey, unit = browser.execute_script("return [[...viewer.panels[0].grey], viewer.white]")
    values = np.array(grey) / unit
    for keys, width, level in (("f", 1, 0.5), ("d", 0.25, 0.125), ("[[]..,", 0.217, 0.145)):
        press(browser, keys)
        found = browser.execute_script("return [viewer.width, viewer.level]")
        assert found == pytest.approx([width, level], abs=1e-3)
        expected = ((values - found[1]) / found[0] + 0.5) * 255
        assert np.abs(shown_greys(browser) - expected.clip(0, 255)).max() <= 0.51
    middle = float(np.median(values))
    browser.execute_script("viewer.setWindow(0.02, arguments[0])", middle)
    shown = shown_greys(browser)
    inside = np.abs(values - middle) < 0.01
    assert inside.sum() >= 4
    assert len(set(shown)) > min(inside.sum() / 2, 40)  # 8 bits would have five values there
    press(browser, "+++")
    press(browser, RIGHT, holding=SHIFT)
    zoom, centre = browser.execute_script("return [viewer.zoom, viewer.centre]")
    assert zoom == pytest.approx(1.25**3)
    assert centre[0] > 0.5 and centre[1] == 0.5
    press(browser, "0")
    assert browser.execute_script("return [viewer.zoom, viewer.centre]") == [1, [0.5, 0.5]]


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_the_page_fits_the_screen(browser: Browser, tmp_path: Path, size: tuple[int, int]) -> None:
    make(tmp_path)
    open_page(browser, tmp_path / "study" / "reader_1.html", size)
    widest, height = browser.execute_script(
        "const root = document.documentElement; return [root.scrollWidth, root.scrollHeight]"
    )
    assert widest <= size[0]
    if size[0] > 760:
        assert height <= size[1]  # nothing to scroll
    for button in browser.find_elements("css selector", "main button"):
        box = button.rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0]
    canvas = browser.find_element("tag name", "canvas").rect
    assert min(canvas["width"], canvas["height"]) > 180


def test_a_browser_that_keeps_nothing_says_so(browser: Browser, tmp_path: Path) -> None:
    make(tmp_path)
    open_page(browser, tmp_path / "study" / "reader_1.html")
    browser.execute_script("Storage.prototype.setItem = () => { throw new Error('full'); }")
    press(browser, "1")
    assert "does not keep your ratings" in text_of(browser, "warning")
