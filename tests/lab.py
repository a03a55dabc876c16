"""JupyterLab in a headless browser, driven as a person would: menus, toolbar buttons, widgets."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
# Every output stays in the page (a long notebook otherwise draws only what is in view) and nothing
# asks the network for news.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def wait(condition, seconds: float, what: str):
    """Return the first true value of condition(); AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s for {what}")


@contextlib.contextmanager
def serve(root: Path, home: Path):
    """Run JupyterLab on loopback for the files under root; yield (address, token)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    for name, values in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    environment = os.environ | {
        "DARKROOM_ROOT": str(root),
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": root,
        "ServerApp.open_browser": False,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    address = f"http://127.0.0.1:{port}"
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
        try:
            wait(lambda: _answers(server, f"{address}/api?token={token}"), 60, "JupyterLab")
            yield address, token
        finally:
            server.terminate()  # it ends its kernels, too
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _answers(server: subprocess.Popen, address: str) -> bool:
    assert server.poll() is None, "JupyterLab ended; see lab.log"
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(address, timeout=5).status == 200
    return False


@contextlib.contextmanager
def browse(home: Path):
    """Start a headless chromium with an empty profile; yield selenium's driver."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={home / 'chromium'}",
        "window-size=1400,2000",
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Notebook:
    """One notebook open in JupyterLab, its kernel ready."""

    def __init__(self, driver, address: str, token: str, path: str) -> None:
        self.driver, self.path = driver, path
        # `reset` closes what an earlier notebook left open in the workspace
        driver.get(f"{address}/lab/tree/{path}?reset&token={token}")
        wait(self._ready, 60, f"{path} and its kernel")

    def _ready(self) -> bool:
        return self.driver.execute_script(
            """
            const app = window.jupyterapp, panel = app && app.shell && app.shell.currentWidget;
            return !!(panel && panel.context && panel.context.path === arguments[0]
                && panel.context.isReady && panel.content.model.cells.length
                && panel.sessionContext.isReady
                && panel.sessionContext.session.kernel.status === 'idle');
            """,
            self.path,
        )

    def menu(self, menu: str, entry: str) -> None:
        """Click an entry of the menu bar."""
        self.click(f"//div[contains(@class,'lm-MenuBar-itemLabel') and text()='{menu}']")
        self.click(f"//div[contains(@class,'lm-Menu-itemLabel') and text()='{entry}']")

    def click(self, xpath: str) -> None:
        """Click the first visible element, as soon as there is one."""

        def visible():
            found = self.driver.find_elements("xpath", xpath)
            return next((element for element in found if element.is_displayed()), None)

        wait(visible, 20, f"{xpath} in {self.path}").click()

    def run_all(self) -> None:
        self.menu("Run", "Run All Cells")

    def interrupt(self) -> None:
        """Press the toolbar's square."""
        self.click("//*[@data-jp-item-name='interrupt']//*[self::button or self::jp-button]")

    def cells(self) -> list[dict]:
        """Return the code cells as JupyterLab holds them now, outputs included."""
        script = "return jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells"
        return [cell for cell in self.driver.execute_script(script) if cell["cell_type"] == "code"]

    def select_last(self) -> int:
        """Select the last cell, a code cell; return its place among the code cells."""
        self.driver.execute_script(
            "const notebook = jupyterapp.shell.currentWidget.content;"
            "notebook.activeCellIndex = notebook.widgets.length - 1; notebook.deselectAll();"
        )
        return len(self.cells()) - 1

    def running(self) -> bool:
        """Say whether a cell shows the star of one that runs or waits.

        The kernel's own status does not tell: a click on a widget is handled by another thread of
        the kernel, and makes it report idle while a cell runs.
        """
        script = "return [...document.querySelectorAll('.jp-InputPrompt')].map(p => p.innerText)"
        return any("*" in prompt for prompt in self.driver.execute_script(script))

    def kernel(self) -> dict:
        """Return the kernel's id and status."""
        script = "const k = jupyterapp.shell.currentWidget.sessionContext.session.kernel;"
        return self.driver.execute_script(script + "return {id: k.id, status: k.status}")

    def errors(self) -> list[str]:
        """Return every error output: its name, message and traceback's end."""
        return [
            f"{self.path}: {output['ename']}: {output['evalue']} {output['traceback'][-3:]}"
            for cell in self.cells()
            for output in cell["outputs"]
            if output["output_type"] == "error"
        ]

    def finished(self) -> bool:
        """Say whether every cell has run; AssertionError as soon as one of them failed."""
        errors = self.errors()
        assert not errors, "\n".join(errors)
        ran = all(cell["execution_count"] for cell in self.cells() if cell["source"].strip())
        return ran and not self.running()

    def pictures(self) -> int:
        """Count the pictures that the page really shows in outputs."""
        return self.driver.execute_script(
            """return [...document.querySelectorAll('.jp-OutputArea-output img')]
                .filter(i => i.complete && i.naturalWidth > 50 && i.clientWidth > 50).length"""
        )

    def text(self) -> str:
        """Return the text of every output as the page shows it."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('.jp-OutputArea-output')]"
            ".map(o => o.innerText).join('\\n')"
        )
