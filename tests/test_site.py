"""The docs site, as a reader sees it: every page at the width of a desk and of a phone, every link, the search.

`make docs` builds the site; `tests/run.sh` does so before the tests.
"""
import functools
import http.server
import json
import re
import threading
from html import unescape

import pytest
from conftest import ROOT, wait_for

pytestmark = pytest.mark.dev
SITE = ROOT / "_docs"
if not (SITE / "index.html").is_file(): pytest.skip("the site is not built (make docs)", allow_module_level=True)
PAGES = sorted(str(p.relative_to(SITE)) for p in SITE.rglob("*.html") if "site_libs" not in p.parts)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *said): pass


@pytest.fixture(scope="module")
def site():
    "The site, served; gives its address."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


def test_the_sidebar_has_all_that_a_visitor_looks_for():
    text = (SITE / "index.html").read_text()
    for section in ("Course", "Reports", "Use it", "API"): assert f">{section}<" in text, section
    chapters = [p.name for p in (ROOT / "nbs").glob("*.ipynb")]
    assert {c.replace(".ipynb", ".html") for c in chapters} <= set(PAGES)
    for run in (ROOT / "reports").glob("*/*/*/train.ipynb"):
        assert str(run.relative_to(ROOT)).replace(".ipynb", ".html") in PAGES
    hidden = [p for p in PAGES if not re.search(rf'href="(\./)?{re.escape(p)}"', text)]
    assert not hidden, f"no way leads to {hidden}"


def test_every_link_into_a_page_arrives():
    places = {p: set(re.findall(r'\bid="([^"]+)"', (SITE / p).read_text())) for p in PAGES}
    lost = []
    for page in PAGES:
        for link in map(unescape, re.findall(r'<a [^>]*href="([^"]+)"', (SITE / page).read_text())):
            if re.match(r"\w+:", link): continue
            path, _, place = link.partition("#")
            target = page if not path else str((SITE / page).parent.joinpath(path).resolve().relative_to(SITE.resolve()))
            if not (SITE / target).exists() or place and target in places and place not in places[target]: lost.append(f"{page}: {link}")
    assert not lost, "\n".join(lost)


LOOK = """(() => {
  const wide = document.documentElement.clientWidth, main = document.querySelector('main');
  const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT), small = [];
  for (let n; n = walker.nextNode();) {
    const p = n.parentElement;
    if (n.data.trim().length > 1 && p.offsetParent && !p.closest('svg, sup, sub') && parseFloat(getComputedStyle(p).fontSize) < 10.5) small.push(n.data.trim().slice(0, 40));
  }
  const cut = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement) if (getComputedStyle(p).overflowX !== 'visible') return true; };
  return JSON.stringify({
    over: document.documentElement.scrollWidth - wide,
    outside: [...main.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > wide + 2 && !cut(e)).slice(0, 3).map(e => e.tagName + ' ' + e.innerText?.slice(0, 40)),
    broken: [...main.querySelectorAll('img')].filter(i => i.complete && !i.naturalWidth).length,
    mute: [...main.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 2 && !e.closest('details:not([open])') && /auto|scroll/.test(getComputedStyle(e).overflowX)
      && parseFloat(getComputedStyle(e).getPropertyValue('--after')) < 20).slice(0, 3).map(e => e.tagName + ' scrolls and does not show it: ' + e.innerText?.slice(0, 40)),
    small: small.slice(0, 3), title: document.querySelector('h1')?.innerText || '',
    tex: (main.innerText.match(/\\\\[(\\[]|\\$\\$|\\\\(frac|left|sum|hat|cdot)/g) || []).length })
})()"""


@pytest.mark.parametrize("width, phone", [(1280, False), (390, True)], ids=["desk", "phone"])
def test_every_page_reads_well(site, page, width, phone, pictures, request):
    page.resize(width, 900, phone)
    faults = []
    for name in PAGES:
        page.go(site + name)
        seen = json.loads(page.js(LOOK))
        if not seen.pop("title"): faults.append(f"{name}: no title")
        faults += [f"{name}: {what} {found}" for what, found in seen.items() if (found > 1 if what == "over" else found)]
        if request.config.getoption("screenshots"): page.screenshot(pictures / f"site-{width}" / f"{name.replace('/', '-')[:-5]}.png", whole=True)
    assert not faults, "\n".join(faults)


def test_search_finds_what_a_reader_types(site, page):
    page.resize(1280)
    page.go(site + "index.html")
    page.click("#quarto-search input")
    page.write("threshold")
    found = "[...document.querySelectorAll('.smalldocs-search-results a')].map(a => a.getAttribute('href'))"
    links = wait_for(lambda: page.js(found), 30, "what the search found")
    assert any("04_thresholding" in link for link in links)
    light = """(e => { const c = getComputedStyle(e).color.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0);
      let p = e; while (getComputedStyle(p).backgroundColor == 'rgba(0, 0, 0, 0)') p = p.parentElement;
      return Math.abs(c - getComputedStyle(p).backgroundColor.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0)) })"""
    faint = page.js(f"[...document.querySelectorAll('.smalldocs-search-results a *')].filter(e => e.innerText && {light}(e) < 300).map(e => e.innerText)")
    assert faint == [], "what was found can't be read"
    page.click(".smalldocs-search-results a")
    wait_for(lambda: page.js("location.pathname") == "/" + links[0].removeprefix("./").partition("#")[0], 30, "the page that was found")
