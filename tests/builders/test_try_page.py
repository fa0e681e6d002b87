"""The page to try a server from, in a real Chromium: methods listed, a request sent, a stream shown as it comes."""

import json
import shutil

import modal
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = pytest.mark.wide

KEY = "0123456789abcdef0123456789"
APP = """
import modal, gpuserve
from pydantic import BaseModel

app = modal.App("tried")
go_on = modal.Queue.from_name("go-on", create_if_missing=True)

class Order(BaseModel):
    item: str
    count: int = 2

@gpuserve.register(app)
class Shop(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="try-keys"))

    @gpuserve.batched
    def price(self, batch: list[Order]) -> list[str]:
        return [f"<b>{order.item}</b> {3 * order.count}" for order in batch]

    @gpuserve.streaming
    def tell(self, item: str):
        yield "one"
        go_on.get(timeout=20)
        yield "two"
"""


@pytest.fixture
def deployed(engine, modal_cli, tmp_path, monkeypatch):
    """The address of the server, as `gpuserve local serve` has it run."""
    modal_cli("secret", "create", "--force", "try-keys", f"GPUSERVE_API_KEYS=ci:{KEY}")
    (tmp_path / "tried.py").write_text(APP)

    def deploy(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        modal_cli("deploy", "tried.py")
        with engine.connected():
            return modal.Cls.from_name("tried", "Shop")().web.get_web_url()

    return deploy


def test_the_page_is_there_only_where_it_is_asked_for(deployed):
    import httpx

    assert httpx.get(f"{deployed()}/try", timeout=20).status_code == 401
    page = httpx.get(f"{deployed(GPUSERVE_TRY_PAGE='1')}/try", timeout=20)
    assert page.status_code == 200
    assert KEY not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_request_and_a_stream_are_tried_in_a_browser(engine, deployed, tmp_path, debian_packages):
    if not all(map(shutil.which, ("chromium", "chromedriver"))):
        debian_packages("chromium", "chromium-driver")
    programs = list(map(shutil.which, ("chromium", "chromedriver")))
    url = deployed(GPUSERVE_TRY_PAGE="1")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Driver(programs[1])) as browser:

        def at(ident):
            return browser.find_element(By.ID, ident)

        def shows(ident, text):
            WebDriverWait(browser, 20).until(lambda _browser: text in at(ident).text, f"{at(ident).text!r}")

        browser.get(f"{url}/try")
        at("key").send_keys("wrong")
        at("send").click()
        shows("note", "Authorization: Bearer KEY")
        at("key").clear()
        at("key").send_keys(KEY)
        at("send").click()
        shows("title", "Shop")
        methods = Select(at("method"))
        assert [one.text for one in methods.options] == ["/price", "/tell"]
        assert json.loads(at("body").get_property("value")) == {"input": {"item": "", "count": 2}}
        at("body").clear()
        at("body").send_keys('{"input": {"item": "tea", "count": 4}}')
        at("send").click()
        shows("answer", '"output": "<b>tea</b> 12"')
        shows("note", "200 after")
        methods.select_by_value("/tell")
        at("body").clear()
        at("body").send_keys('{"input": "x"}')
        at("send").click()
        shows("answer", '"one"')
        assert "two" not in at("answer").text
        with engine.connected():
            modal.Queue.from_name("go-on", create_if_missing=True).put(1)
        shows("answer", '"two"')
        shows("note", "200 after")
        severe = [
            line for line in browser.get_log("browser") if line["level"] == "SEVERE" and "401" not in line["message"]
        ]
        assert severe == []
