"""The page in a real browser that reaches no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from sweeps.__main__ import main
from sweeps.bench.compare import make_sweep
from tests.chromium import chromium_driver
from tests.sweeps.compare.made_runs import made_run

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"


@dataclass
class Browser:
    """Chromium, and what a user does in a page."""

    driver: Any

    def open(self, path, *, dark=False, width=1280):
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(path.as_uri())
        # Drawn anew where a scroll bar took some of the width: that is done with the next frame.
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def run(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def click(self, selector, text=None):
        found = [e for e in self.all(selector) if text is None or e.text.split("\n")[0].strip(" ↑↓↕") == text]
        self.run("arguments[0].scrollIntoView({block: 'center'})", found[0])
        found[0].click()

    def type(self, selector, text):
        [field] = self.all(selector)
        field.clear()
        field.send_keys(text)

    def column(self, name):
        """Texts of a column, of the rows that are shown."""
        return self.run(
            """(name => {
                const heads = [...document.querySelectorAll('#table thead th')];
                const at = heads.findIndex(head => head.textContent === name);
                const rows = [...document.querySelectorAll('#table tbody tr:not([hidden])')];
                return rows.map(row => row.cells[at].textContent);
            })(arguments[0])""",
            name,
        )

    def curves(self, kind):
        """Runs of the curves that have the class ``kind``."""
        return set(self.run(f"[...document.querySelectorAll('.curve{kind}')].map(path => path.dataset.run)"))

    def requests(self):
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(request):
    """One Chromium for all tests; every name but a file's leads nowhere."""
    with chromium_driver(request.config) as driver:
        yield Browser(driver)


@pytest.fixture
def page(folder, tmp_path):
    """A page of three rates, two seeds each, a run that goes on, and one that failed with hostile words."""
    for seed in (0, 1):
        for rate, loss in ((0.001, 3.0), (0.01, 1.0), (0.1, 2.0)):
            made_run(folder, loss + seed / 10, optim__lr=rate, trainer__seed=seed, data__kind="shapes")
    made_run(folder, state="RUNNING", optim__lr=1.0)
    failed = made_run(folder, state="FAILED", data__kind=HOSTILE)
    failed.write_status(state="FAILED", step=3, reason=HOSTILE)
    return written(folder, tmp_path)


def written(folder, tmp_path):
    path = tmp_path / "page.html"
    assert main(["compare", str(folder), "--html", str(path)]) == 0
    return path


def test_it_asks_for_nothing_and_complains_of_nothing(browser, page):
    browser.open(page)
    assert browser.run("document.querySelectorAll('#table tbody tr').length") == 5
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.complaints() == []


def test_hostile_words_are_shown_and_never_run(browser, page):
    browser.open(page)
    assert HOSTILE in browser.column("data.kind")
    assert browser.run("[window.hacked, document.images.length, document.scripts.length]") == [None, 0, 2]
    assert browser.run("[...document.querySelectorAll('#table tr')].some(row => row.title.includes('onerror'))")
    assert browser.complaints() == []


def test_the_policy_refuses_what_is_not_ours(browser, page):
    browser.open(page)
    browser.run(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.hacked = 3';"
        "document.body.append(script); const image = new Image(); image.src = 'https://example.org/x.png';"
        "document.body.append(image); })()"
    )
    assert browser.run("window.hacked") is None
    assert any("Content Security Policy" in message for message in browser.complaints())


def test_headings_sort_and_what_is_missing_stays_last(browser, page):
    browser.open(page)
    assert browser.column("lr")[:3] == ["0.01", "0.1", "0.001"]
    browser.click("th button", "lr")
    assert browser.column("lr") == ["0.001", "0.001", "0.01", "0.1", "1"]
    assert browser.run("document.querySelectorAll('th[aria-sort=ascending]').length") == 1
    browser.click("th button", "lr")
    assert browser.column("lr") == ["1", "0.1", "0.01", "0.001", "0.001"]
    browser.click("th button", "±")
    assert browser.column("±")[-2:] == ["–", "–"]
    browser.click("th button", "±")
    assert browser.column("±")[-2:] == ["–", "–"]


def test_what_is_not_done_is_marked(browser, page):
    browser.open(page)
    assert browser.column("state") == ["COMPLETED"] * 3 + ["FAILED", "RUNNING"]
    assert [text[0] for text in browser.column("best_val_loss")[3:]] == ["~", "~"]


def test_a_click_on_a_row_highlights_the_curves_of_its_runs(browser, page):
    browser.open(page)
    assert len(browser.curves(".picked")) == 6 and len(browser.curves("")) == 8, "the best are highlighted at first"
    browser.click("#clear")
    assert browser.curves(".picked") == set()
    browser.click("#table tbody tr:nth-child(2) td.value")
    seeds = browser.run("data.runs.filter(run => run.setting === 1).map(run => run.id)")
    assert browser.curves(".picked") == set(seeds) and len(seeds) == 2
    assert browser.run("[...document.querySelectorAll('.dot.picked')].length") == 2
    assert browser.run("document.querySelectorAll('tr[aria-selected=true]').length") == 1
    browser.click("#table tbody tr:nth-child(2) td.value")
    assert browser.curves(".picked") == set()


def test_each_run_is_a_row_of_its_own_when_asked_for(browser, page):
    browser.open(page)
    browser.click("#each")
    assert browser.column("best_val_loss")[:6] == ["1", "1.1", "2", "2.1", "3", "3.1"]
    assert browser.column("trainer.seed")[:2] == ["0", "1"]
    browser.click("#clear")
    browser.click("#table tbody tr:nth-child(2) td.value")
    assert len(browser.curves(".picked")) == 1


@pytest.mark.parametrize(
    ("words", "rates"),
    [("lr=0.01", ["0.01"]), ("lr>0.01 completed", ["0.1"]), ("RUNN", ["1"]), ("optim.lr<=0.01 n=2", ["0.01", "0.001"]),
     ("no such word", []), ("window.hacked", ["0.001"])],
)  # fmt: skip
def test_the_filter_hides_rows_and_their_curves(browser, page, words, rates):
    browser.open(page)
    browser.type("#filter", words)
    assert browser.column("lr") == rates
    shown = browser.run(
        "data.runs.filter(run => !view.hidden.has(run.index) && run.index < data.curves.total).map(run => run.id)"
    )
    assert browser.curves("") == set(shown)
    assert f"{len(rates)} of 5 rows." in browser.all("#count")[0].text


def test_the_keyboard_does_what_the_mouse_does(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    browser.click("#clear")
    browser.run("document.querySelector('#table tbody tr').focus()")
    ActionChains(browser.driver).send_keys(Keys.ARROW_DOWN, Keys.ENTER).perform()
    assert len(browser.curves(".picked")) == 2 and len(browser.curves(".hover")) == 2
    ActionChains(browser.driver).send_keys(Keys.ARROW_UP, Keys.SPACE).perform()
    assert len(browser.curves(".picked")) == 4


def test_the_nearest_curve_is_told(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(page)
    at = browser.run("curves.lines[0].points[1].concat([curves.lines[0].index])")
    bounds = browser.run("(r => [r.left, r.top])(document.querySelector('#curves svg').getBoundingClientRect())")
    actions = ActionChains(browser.driver)
    actions.w3c_actions.pointer_action.move_to_location(round(bounds[0] + at[0]), round(bounds[1] + at[1]))
    actions.perform()
    run = browser.run("data.runs[arguments[0]]", at[2])
    told = browser.run("document.getElementById('tip').textContent")
    assert told.split("\n")[0] == run["id"] and "step 20: " in told
    assert browser.curves(".hover") == {run["id"]}


def test_log_scale_smoothing_and_other_curves(browser, page):
    browser.open(page)
    before = browser.run("curves.lines[0].path.getAttribute('d')")
    browser.click("#log")
    log = browser.run("curves.lines[0].path.getAttribute('d')")
    assert log != before and "NaN" not in log
    browser.run("document.getElementById('smooth').value = 0.9")
    browser.run("document.getElementById('smooth').dispatchEvent(new Event('input'))")
    assert browser.run("curves.lines[0].path.getAttribute('d')") != log
    browser.run(
        "(s => { s.value = 'train/loss'; s.dispatchEvent(new Event('input')); })(document.getElementById('curve'))"
    )
    assert "train/loss" in browser.all("#curves svg")[0].get_attribute("aria-label")


def test_what_mattered_leads_to_its_picture(browser, page):
    browser.open(page)
    assert [e.text.split("\n")[0] for e in browser.all(".share .line")] == ["lr", "data.kind", "trainer.seed"]
    browser.click(".share[data-key='trainer.seed']")
    assert "best_val_loss by trainer.seed" in browser.all("#scatter svg")[0].get_attribute("aria-label")


def test_all_settings_at_once(browser, page):
    browser.open(page)
    choose = "(s => { s.value = ALL; s.dispatchEvent(new Event('input')); })(document.getElementById('parameter'))"
    browser.run(choose)
    assert len(browser.all(".strand")) == 6 and browser.all(".strand.picked")
    assert not any("NaN" in path.get_attribute("d") for path in browser.all(".strand"))
    browser.click("#clear")
    assert not browser.all(".strand.picked")
    browser.type("#filter", "lr=0.01")
    assert len(browser.all(".strand")) == 2
    assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 420])
def test_it_fits_the_screen_and_can_be_read(browser, page, dark, width):
    browser.open(page, dark=dark, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    ink, ground = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert contrast(ink, ground) > 7  # WCAG 2.1, 1.4.6
    browser.click("#theme")
    turned = browser.run("getComputedStyle(document.body).backgroundColor")
    assert turned != ground


def contrast(*colours):
    """Contrast of two colours ``rgb(r, g, b)`` (WCAG 2.1, relative luminance)."""
    light = []
    for colour in colours:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_a_thousand_runs(browser, tmp_path):
    make_sweep(tmp_path / "many", 1000)
    browser.open(written(tmp_path / "many", tmp_path))
    assert browser.all("#count")[0].text == "250 rows."
    assert browser.all("#curves-note")[0].text.startswith("The curves of the best 200 of 1000 runs are in this page")
    assert len(browser.curves("")) == 200 and len(browser.all(".dot")) == 1000
    browser.click("#each")
    assert browser.all("#count")[0].text == "1000 rows."
    browser.click("th button", "lr")
    rates = [float(text) for text in browser.column("lr")]
    assert len(rates) == 1000 and rates == sorted(rates)
    browser.type("#filter", "n_layer=8 trainer.seed=0")
    assert set(browser.column("n_layer")) == {"8"} and set(browser.column("trainer.seed")) == {"0"}
    assert browser.complaints() == []
