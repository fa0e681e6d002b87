"""The search page in a real Chromium, driven by the keyboard."""

import json
import shutil
import signal

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from gpuserve.quickstart.app import write_index

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]  # installing chromium takes its time

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
_PROGRAMS = ("chromium", "chromedriver")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory, debian_packages):
    if not all(map(shutil.which, _PROGRAMS)):
        debian_packages("chromium", "chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location, driver = map(shutil.which, _PROGRAMS)
    for flag in (*_FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=900,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Driver(driver)) as browser:
        yield browser


class Page:
    """The page as somebody in front of it sees it."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url

    def open(self, fragment=""):
        self.browser.get("about:blank")
        self.browser.get(f"{self.url}/{fragment and '#'}{fragment}")

    def press(self, *keys):
        for key in keys:
            self.focused.send_keys(key)

    def wait_for(self, text):
        WebDriverWait(self.browser, 60).until(lambda _browser: text in self.note, f"{self.note!r} lacks {text!r}")

    @property
    def focused(self):
        return self.browser.switch_to.active_element

    @property
    def note(self):
        return self.browser.find_element(By.ID, "note").text

    @property
    def names(self):
        return [one.text for one in self.browser.find_elements(By.CSS_SELECTOR, "#results .name")]

    def complaints(self):
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]

    def requests(self):
        events = [json.loads(line["message"])["message"] for line in self.browser.get_log("performance")]
        return [one["params"]["request"] for one in events if one["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def indexed(service):
    status, answer = service.post("/v1/embeddings", {"input": service.texts})
    assert status == 200
    write_index(service.docstrings, [np.array(one["embedding"], np.float32) for one in answer["data"]])
    return service


@pytest.fixture
def page(chromium, indexed):
    page = Page(chromium, indexed.url)
    page.open()
    chromium.execute_script("sessionStorage.clear()")
    page.open()
    page.requests(), page.complaints()  # those of the test before
    return page


def test_a_question_is_answered_while_it_is_typed_and_the_latency_is_shown(page, indexed):
    page.open(indexed.key)
    page.press("make a zip file")
    page.wait_for(f"nearest of {len(indexed.texts)} in ")

    assert page.names[0] == "archives.make"
    assert len(page.names) == len(indexed.texts)
    assert page.note.endswith(" ms")
    assert page.complaints() == []


def test_the_key_is_in_no_address(page, indexed):
    page.open(indexed.key)
    page.press("a", Keys.ENTER)
    page.wait_for("nearest of")
    asked = page.requests()

    assert page.browser.current_url == f"{indexed.url}/"
    assert any(one["url"].endswith("/search") for one in asked)
    assert [one["url"] for one in asked if indexed.key in one["url"]] == []
    assert {one["url"].split("/")[2] for one in asked if one["url"].startswith("http")} == {indexed.url.split("/")[2]}


def test_everything_is_done_from_the_keyboard(page, indexed):
    page.open(indexed.key)
    page.press("parse a date", Keys.ENTER)
    page.wait_for("nearest of")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ENTER)

    opened = page.browser.find_elements(By.CSS_SELECTOR, "details[open] pre")
    assert [one.text for one in opened] == [indexed.texts[1]]
    page.press("/")
    assert page.focused.get_attribute("id") == "query"
    page.press(Keys.ARROW_DOWN, Keys.ESCAPE)
    assert page.focused.get_attribute("id") == "query"
    page.press(Keys.ESCAPE)
    assert page.focused.get_attribute("value") == ""
    assert page.names == []


def test_an_example_is_one_click_away(page, indexed):
    page.open(indexed.key)
    page.browser.find_element(By.CSS_SELECTOR, "#examples button").click()
    page.wait_for("nearest of")

    assert page.names[0] == "threads.later"


def test_markup_in_docstrings_and_questions_is_shown_as_text(page, indexed):
    page.open(indexed.key)
    page.press("<script>pwned()</script>", Keys.ENTER)
    page.wait_for("nearest of")
    page.press(Keys.ARROW_DOWN, Keys.ENTER)

    assert page.names[0] == "markup.<img src=x onerror=pwned()>"
    assert page.browser.find_element(By.CSS_SELECTOR, "details[open] pre").text == indexed.texts[-1]
    assert page.browser.find_elements(By.CSS_SELECTOR, "#results img, #results script") == []
    assert page.complaints() == []


def test_a_script_that_gets_into_the_page_is_not_run(page, indexed):
    page.open(indexed.key)
    page.browser.execute_script(
        "const one = document.createElement('script'); one.textContent = 'window.pwned = 1'; document.body.append(one)"
    )

    assert page.browser.execute_script("return window.pwned") is None
    assert "Content Security Policy" in page.complaints()[0]


def test_without_a_key_or_with_a_wrong_one_the_page_asks_for_it(page, indexed):
    assert "needs the server's key" in page.note
    assert page.focused.get_attribute("id") == "key"
    page.press("wrong-key-wrong-key" + Keys.ENTER)
    page.press("make a zip file" + Keys.ENTER)
    page.wait_for("does not know this key")
    page.press(indexed.key + Keys.ENTER)
    page.wait_for("nearest of")

    assert page.names[0] == "archives.make"
    page.browser.refresh()
    page.press("make a zip file" + Keys.ENTER)
    page.wait_for("nearest of")  # the tab remembers the key


def test_a_refusal_and_a_silent_server_are_told(page, indexed):
    page.open(indexed.key)
    page.browser.execute_script("document.getElementById('query').maxLength = 5000")
    page.browser.execute_script("document.getElementById('query').value = 'a'.repeat(2001)")
    page.press(Keys.ENTER)
    page.wait_for("at most 2000 characters")
    page.browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.press(Keys.ESCAPE, "a", Keys.ENTER)
    page.wait_for("The server does not answer. Is it still running?")
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})

    assert page.names == []


def test_the_page_is_dark_where_the_system_is(page, indexed):
    brightness = {}
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page.open(indexed.key)
        colour = page.browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
        brightness[scheme] = sum(int(part) for part in colour.strip("rgba()").split(",")[:3])

    assert brightness["dark"] < 100
    assert brightness["light"] > 600


def test_what_quickstart_serve_leaves_up_is_found_and_asked_in_the_browser(chromium, start, end):
    process, _folder = start("--limit", "30", "--serve", "--json")
    report = json.loads(process.stdout.readline())
    page = Page(chromium, report["url"])
    page.open(report["key"])
    question = next(iter(report["answers"]))
    page.press(question, Keys.ENTER)
    page.wait_for("nearest of 30 in ")

    assert page.names[:3] == [one["name"] for one in report["answers"][question]]
    assert page.complaints() == []
    assert end(process, signal.SIGINT)[0] == 0
