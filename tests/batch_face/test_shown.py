"""The page of a run in a real Chromium, and its progress in a real kernel."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

import gpuserve

LIMIT_S = 60


def _notebook_module():
    """The kernel that the tests of notebooks use; tests are no package."""
    name = "notebooks_kernel"
    if name not in sys.modules:
        place = Path(__file__).parents[1] / "notebooks" / "test_kernel.py"
        spec = importlib.util.spec_from_file_location(name, place)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.mark.browser
@pytest.mark.timeout(300)
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_of_a_run_is_drawn_within_its_window_and_logs_no_fault(tmp_path, debian_packages, width):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service as Driver
    from selenium.webdriver.common.by import By

    if not all(map(shutil.which, ("chromium", "chromedriver"))):
        debian_packages("chromium", "chromium-driver")
    programs = list(map(shutil.which, ("chromium", "chromedriver")))

    def slow(batch):
        import threading

        threading.Event().wait(0.02)
        return batch

    mapper = gpuserve.BatchMapper(
        target=slow,
        source=gpuserve.Items(range(6000), name="<script>document.title = 'pwned'</script>"),
        output=tmp_path / "out",
        batching=gpuserve.MapBatching(window=1000, max_items=50),
    )
    page = gpuserve.write_batch_report(mapper.run(), tmp_path / "report.html")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Driver(programs[1])) as browser:
        browser.get(page.as_uri())
        plot = browser.find_element(By.TAG_NAME, "svg")
        line = browser.find_element(By.CLASS_NAME, "rate")
        facts = {one.text for one in browser.find_elements(By.TAG_NAME, "dd")}
        assert "6,000 of 6,000" in facts
        assert plot.get_attribute("aria-label").startswith("Items a second over")
        assert plot.size["width"] > 0.6 * min(width, 800) - 40
        assert plot.location["x"] <= line.location["x"]
        assert line.size["height"] <= plot.size["height"]
        assert len(browser.find_elements(By.CSS_SELECTOR, "tbody tr")) == 6
        assert "pwned" not in browser.title
        wider = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wider <= 0
        assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []
        browser.save_screenshot(str(tmp_path / "report.png"))


@pytest.mark.heavy
def test_a_cell_shows_a_meter_that_moves_and_says_how_the_run_ended(tmp_path):
    from jupyter_client.manager import KernelManager

    manager = KernelManager()
    manager.start_kernel()
    try:
        notebook = _notebook_module().Notebook(manager)
        shown = []
        heard = notebook.heard

        def listening():
            message = heard()
            if message["header"]["msg_type"] in {"display_data", "update_display_data"}:
                shown.append(message["content"]["data"])
            return message

        notebook.heard = listening
        text = notebook.cell(f"""
import threading
import gpuserve
def slow(batch):
    threading.Event().wait(0.02)
    return batch
mapper = gpuserve.BatchMapper(target=slow, source=range(6000), output={str(tmp_path / "out")!r},
                              batching=gpuserve.MapBatching(window=1000, max_items=50))
mapper.run(on_event=gpuserve.BatchProgress()).done
""")
    finally:
        manager.shutdown_kernel(now=True)
    assert "6000" in text
    assert "finished: 6,000 of 6,000 items in 6 files" in text
    meters = [one["text/html"] for one in shown if "<progress" in one["text/html"]]
    assert len(set(meters)) >= 2
    assert "6,000" in shown[-1]["text/plain"]
