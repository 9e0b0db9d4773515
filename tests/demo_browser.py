"""A browser for the page of `dynrefer demo`, Debian's chromium with selenium; and a clip for it."""

import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import numpy as np
import pytest

PATIENCE = 180  # seconds; a machine may do other things
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


class Page:
    """A tab with the page. size: of its window; touch: a phone, whose finger is a pointer."""

    def __init__(self, address: str, folder: str, size: tuple[int, int], dark: bool, touch: bool):
        from selenium import webdriver

        self.folder = Path(folder)  # of downloads
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        # no host but this one has an address
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            f"--window-size={size[0]},{size[1]}",
        ):
            options.add_argument(argument)
        if touch:
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 2, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(service=webdriver.ChromeService(DRIVER), options=options)
        self.driver.set_page_load_timeout(PATIENCE)
        if dark:
            feature = {"name": "prefers-color-scheme", "value": "dark"}
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": folder})
        self.driver.get(address)
        self.wait(lambda: self.all(".dr input[type=file]"))

    # --- looking ---

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [one.text for one in self.all(selector)]

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, ready, seconds: float = PATIENCE):
        """What `ready` returns, once that is true."""
        until = time.monotonic() + seconds
        while not (found := self.quietly(ready)):
            assert time.monotonic() < until, f"waited {seconds} s; the page says: {self.one('body').text}"
            time.sleep(0.1)
        return found

    def quietly(self, ready):
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return ready()
        except StaleElementReferenceException:
            return None

    def foreign_hosts(self) -> set[str]:
        """Hosts other than the server's that the page has asked for something."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                url = message["params"].get("request", message["params"])["url"]
                found.add(urlsplit(url).hostname if url.startswith(("http", "ws")) else None)
        return found - {None, "127.0.0.1"}

    def errors(self) -> list[str]:
        return [one["message"] for one in self.driver.get_log("browser") if one["level"] == "SEVERE"]

    # --- doing ---

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def open(self, path) -> str:
        """Opens a file; returns what the page says of it."""
        self.run("document.querySelector('.dr-note').textContent = ''")
        self.one(".dr input[type=file]").send_keys(str(path))
        note = self.wait(lambda: (text := self.one(".dr-note").text) and text != "Opening ..." and text)
        time.sleep(0.3)  # the picture is laid out
        return note

    def tool(self, name: str) -> None:
        self.run("document.querySelector(`.dr input[value=${arguments[0]}]`).click()", name)

    def drag(self, box, image_hw, finger: bool = False) -> None:
        """From a corner of the box to the other one, in pixels of the picture."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        canvas = self.one(".dr-stage canvas")
        self.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
        rim = self.run("const r = arguments[0].getBoundingClientRect(); return [r.x, r.y, r.width, r.height]", canvas)
        x1, y1, x2, y2 = (round(rim[n % 2] + side * rim[2 + n % 2] / image_hw[1 - n % 2]) for n, side in enumerate(box))
        pointer = PointerInput("touch" if finger else "mouse", "pointer")
        actions = ActionChains(self.driver, duration=30, devices=[pointer])
        steps = actions.w3c_actions.pointer_action
        steps.move_to_location(x1, y1)
        steps.pointer_down()
        steps.move_to_location((x1 + x2) // 2, (y1 + y2) // 2)
        steps.move_to_location(x2, y2)
        steps.pointer_up()
        actions.perform()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def download(self, name: str, place: int = 0) -> Path:
        """Presses the button of this name, of the side of this place; returns the file."""
        (self.folder / "done").mkdir(exist_ok=True)
        for left in filter(Path.is_file, self.folder.iterdir()):
            left.rename(self.folder / "done" / left.name)
        shown = [one for one in self.all("button") if one.text == f"↓ {name}" and one.is_displayed()]
        self.run("arguments[0].click()", shown[place])
        return self.wait(
            lambda: [one for one in self.folder.iterdir() if one.is_file() and "crdownload" not in one.name]
        )[0]

    def describe(self) -> list[str]:
        """Presses the button; returns the captions that come, or the line of the error."""
        self.run("document.querySelectorAll('.dr-card, .dr-error').forEach((one) => one.setAttribute('data-seen', 1))")
        self.click("#dr-describe")
        return self.answers()

    def answers(self) -> list[str]:
        fresh = ".dr-card:not([data-seen]) h3, .dr-error:not([data-seen])"
        self.wait(lambda: self.all(fresh))
        time.sleep(0.3)  # the other outputs
        return self.texts(fresh)


@contextmanager
def page(address: str, size=(1280, 900), dark: bool = False, touch: bool = False):
    """Skips the test where there is no browser."""
    pytest.importorskip("selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver; on Debian: apt-get install chromium chromium-driver")
    with TemporaryDirectory() as folder:
        opened = Page(address, folder, size, dark, touch)
        try:
            yield opened
        finally:
            opened.driver.quit()


def write_clip(path: Path, num_frames: int = 12) -> Path:
    """A clip of 128 x 96 pixels, ten frames a second, in which a red square moves 4 pixels a frame to the right."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for t in range(num_frames):
            pixels = np.full((96, 128, 3), 235, np.uint8)
            pixels[20:50, 4 + 4 * t : 34 + 4 * t] = 220, 40, 40
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return path
