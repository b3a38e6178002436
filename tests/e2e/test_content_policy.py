"""The policy of the page: no script runs that is not ours, even where HTML is put into the page on purpose."""

import re
import urllib.request

from gradio import routes

from tests.e2e.conftest import Server, Visit
from ui.server import content_policy

SCRIPT = "window.limnerHit = (window.limnerHit ?? 0) + 1"
ON_PURPOSE = """([script]) => {
  const box = document.createElement("div");
  document.body.append(box);
  box.innerHTML = `<img src="/nothing" onerror="${script}"><a id="odd" href="javascript:${script}">x</a>
    <button id="odder" onclick="${script}">y</button><svg onload="${script}"></svg>
    <iframe srcdoc="<script>parent.${script}</script>"></iframe>`;
  const inline = document.createElement("script");
  inline.textContent = script;
  box.append(inline);
  const foreign = document.createElement("script");
  foreign.src = "data:text/javascript," + encodeURIComponent(script);
  box.append(foreign);
  document.querySelector("#odd").click();
  document.querySelector("#odder").click();
  box.setAttribute("onmouseover", script);
  box.dispatchEvent(new Event("mouseover"));
}"""


def test_a_script_in_the_page_does_not_run(server: Server, visit: Visit, refused: list[str]) -> None:
    page = visit(server)
    assert refused == []
    page.evaluate(ON_PURPOSE, [SCRIPT])
    page.wait_for_timeout(1000)
    assert len(refused) >= 7, refused
    assert page.evaluate("window.limnerHit ?? 0") == 0
    page.evaluate(f"new Function({SCRIPT!r})()")
    assert page.evaluate("window.limnerHit") == 1, "the script itself works"
    refused.clear()


def test_scripts_inline_are_named_by_each_answer_anew(server: Server) -> None:
    nonces = set()
    for _time in range(2):
        with urllib.request.urlopen(server.url) as answer:
            policy, html = answer.headers["content-security-policy"], answer.read().decode()
        (nonce,) = re.findall(r"'nonce-([\w-]{22})'", policy)
        assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
        scripts = re.findall(r"<script[^>]*>", html)
        assert len(scripts) == html.count("</script>") >= 5
        assert all(f'nonce="{nonce}"' in script for script in scripts)
        nonces.add(nonce)
    assert len(nonces) == 2


def test_a_script_in_a_value_has_no_nonce() -> None:
    content_policy.apply(routes.templates.env)
    template = routes.templates.env.from_string("<script>{{ config | toorjson }}</script>{{ text }}")
    request = {"scope": {content_policy.NONCE: "n"}}
    drawn = template.render(request=request, config={"a": "</script><script>"}, text="<script>")
    assert drawn.count('<script nonce="n">') == 1
    assert drawn.count("<script") == 1
