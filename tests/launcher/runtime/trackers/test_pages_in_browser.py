"""What a user sees: a sweep of real runs on MLflow's own pages and on TensorBoard's, in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest

from launcher.runtime.job import run_job
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.trackers.mlflow_store import Place, open_client
from tests.chromium import chromium_driver
from tests.launcher.runtime.toy_job import STEPS, toy_job
from tests.launcher.runtime.trackers.stores import mlflow_server, run_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]
RATES = (0.01, 0.02)


@pytest.fixture(scope="module")
def browser(request):
    with chromium_driver(request.config, reaches="127.0.0.1") as driver:
        driver.set_window_size(1700, 1300)
        driver.implicitly_wait(30)
        yield driver


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def mlflow(folder):
    (folder / "server").mkdir()
    with mlflow_server(folder / "server") as address:
        yield address


@pytest.fixture(scope="module")
def plans(folder, mlflow):
    """Two members of a sweep, trained."""
    open_client(Place(mlflow, "tests"))
    tracker = {"csv": True, "tensorboard": True, "mlflow": True, "mlflow_uri": mlflow, "wait_s": 120.0}
    made = [toy_job(folder, lr=rate) for rate in RATES]
    made = [replace(plan, execution=plan.execution | {"tracker": tracker}) for plan in made]
    sweep = SweepDir(made[0].rundir.path.parent)
    sweep.path.mkdir(parents=True)
    sweep.add_members((plan.run_id, (f"lr={rate}",)) for plan, rate in zip(made, RATES, strict=True))
    for plan in made:
        run_job(plan, {}, StopFlag(), visible=False)
    return made


def shown(browser, address, folder, name, *texts):
    """Open a page, wait for ``texts`` on it, keep its picture; its whole text, hidden or scrolled away as well."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(address)

    def text(driver):
        return driver.execute_script("return document.body.textContent")

    try:
        WebDriverWait(browser, 60).until(lambda driver: all(word in text(driver) for word in texts))
    finally:
        browser.save_screenshot(str(folder / f"{name}.png"))
    return text(browser)


def test_mlflow_shows_the_sweep_and_its_members(browser, folder, mlflow, plans):
    place = Place(mlflow, "tests")
    runs = [run_of(place, plan.rundir) for plan in plans]
    experiment = runs[0].info.experiment_id
    ids = [plan.run_id for plan in plans]
    listed = shown(browser, f"{mlflow}/#/experiments/{experiment}/runs", folder, "mlflow-runs", "toys")
    assert "toys" in listed
    address = f"{mlflow}/#/experiments/{experiment}/runs/{runs[0].info.run_id}"
    page = shown(browser, address, folder, "mlflow-run", ids[0], "Finished", "hub_token")
    assert "<redacted>" in page and "hf-secret" not in page and "0.01" in page
    metrics = shown(browser, f"{address}/model-metrics", folder, "mlflow-metrics", "best_val_loss", "Step")
    assert "train_loss" in metrics and "time" in metrics
    files = shown(browser, f"{address}/artifacts", folder, "mlflow-files", "config.yaml", "loss_curve.png")
    assert "summary.json" in files and "timing_curve.png" in files


@contextmanager
def tensorboard(logdir):
    words = ["tensorboard.main", "--logdir", str(logdir), "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True) as process:
        said = iter(process.stderr.readline, "")
        yield next(found[0] for line in said if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        process.terminate()


def test_tensorboard_shows_the_curves_of_both(browser, folder, plans):
    with tensorboard(plans[0].rundir.path.parent) as address:
        page = shown(browser, f"{address}#timeseries", folder, "tensorboard", plans[0].run_id, "loss")
        assert plans[1].run_id in page and STEPS
