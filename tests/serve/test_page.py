"""The page in a browser: a context is picked, a question asked, a sentence clicked; nothing else is asked for."""

import copy
import re
from contextlib import contextmanager

import httpx
import pytest
from serving import NAME, running

from landmark.serve.keys import Keys, Quota, new_key

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
expect = sync_api.expect
expect.set_options(timeout=60_000)
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
REFUSED = re.compile(r"status of (400|401) \(")  # which Chromium says of every refusal


@contextmanager
def opened(browser, one, viewport=None, **options):
    """The page of a server, which may say nothing on the console, throw nothing and ask nobody but that server."""
    context = browser.new_context(viewport=viewport or DESK, reduced_motion="reduce", **options)
    page, said, asked = context.new_page(), [], []
    page.set_default_timeout(120_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    context.on("request", lambda request: asked.append(request.url))
    page.goto(one.url)
    yield page
    assert [text for text in said if not REFUSED.search(text)] == []
    assert {url.startswith(one.url) for url in asked} == {True}
    context.close()


@pytest.fixture
def page(browser, served):
    with opened(browser, served) as page:
        page.locator("#context option").nth(1).wait_for(state="attached")
        yield page


def ask(page, question, tokens):
    page.locator("#question").fill(question)
    page.locator("#tokens").fill(str(tokens))
    page.locator("#ask").click()


def test_an_answer_streams_and_its_sentences_show_what_they_read(page, served):
    assert page.locator("#context option:checked").text_content().startswith("library (")
    page.locator("#kind").select_option("text")
    ask(page, "jim looked at the ", 30)
    page.locator(".sentence").first.wait_for()
    body = {"model": f"{NAME}@library", "prompt": "jim looked at the ", "max_tokens": 30}
    answer = served.client().completions.create(**body, extra_body={"sentences": True}).choices[0]
    assert page.locator("#answer").text_content() == answer.text
    assert page.locator("#sources li").count() == len(answer.landmark["sources"]) > 0
    assert page.locator(".sentence").count() == len(answer.landmark["sentences"])
    page.locator(".sentence").last.click()
    assert page.locator("#chosen").text_content() == "What was read for this sentence"
    shown = page.locator("#sources blockquote").all_text_contents()
    assert shown == [source["text"].strip() for source in answer.landmark["sentences"][-1]["sources"]]
    assert "30 tokens" in page.locator("#status").text_content()


def test_a_click_opens_a_source(page):
    page.locator("#kind").select_option("text")
    ask(page, "jim looked at the ", 8)
    second = page.locator("#sources details").nth(1)
    expect(page.locator("#sources blockquote").first).to_be_visible()
    expect(second.locator("blockquote")).to_be_hidden()
    second.locator("summary").click()
    expect(second.locator("blockquote")).to_be_visible()


def test_enter_asks_and_with_shift_begins_a_line(page):
    page.locator("#kind").select_option("text")
    page.locator("#tokens").fill("5")
    question = page.locator("#question")
    question.fill("jim")
    question.press("Shift+Enter")
    assert question.input_value() == "jim\n"
    assert page.locator("#status").text_content() == ""
    question.press("Enter")
    expect(page.locator("#status")).to_have_text(re.compile("5 tokens"))
    assert question.input_value() == "jim\n"


def test_a_question_is_asked_as_a_chat_and_can_be_stopped(page, served):
    ask(page, "where are the keys ?", 4000)
    expect(page.locator("#answer")).to_have_text(re.compile(".{5}", re.DOTALL))
    page.locator("#stop").click()
    expect(page.locator("#status")).to_have_text("stopped")
    assert page.locator("#ask").is_enabled()


def test_a_model_that_cannot_chat_is_asked_to_continue(browser, reader, library):
    model, tokenizer = reader
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with running(model, plain, given={"library": library}) as one, opened(browser, one) as page:
        page.locator("#context option").nth(1).wait_for(state="attached")
        expect(page.locator("#kind")).to_have_value("text")
        assert page.locator("#kind option[value=chat]").is_disabled()
        ask(page, "jim looked at the ", 5)
        expect(page.locator("#status")).to_have_text(re.compile("5 tokens"))


def test_a_job_that_reads_is_shown_and_its_context_is_chosen(browser, reader, tmp_path, monkeypatch):
    with running(*reader, data=tmp_path) as one, opened(browser, one) as page:
        expect(page.locator("#about")).to_have_text(f"model {NAME}")
        assert page.locator("#context").input_value() == ""
        assert page.locator("#reading").is_hidden()
        text = "jim looked at the ships and keys for a long while . " * 2000
        body = {"name": "shelf", "documents": [{"name": "long.txt", "text": text}]}
        assert httpx.post(f"{one.url}/v1/contexts", json=body, timeout=60).status_code == 201
        page.evaluate("look()")
        expect(page.locator("#jobs progress[max]")).to_have_count(1)
        assert re.search(r"shelf: long\.txt, [\d,]+ of [\d,]+ tokens", page.locator("#jobs").text_content())
        expect(page.locator("#reading")).to_be_hidden()
        expect(page.locator("#context option:checked")).to_have_text(re.compile(r"shelf \("))
        assert page.locator("#error").is_hidden()
        page.locator("#context").select_option("")
        page.evaluate("look()")
        assert page.locator("#context").input_value() == ""  # what was chosen stays

        monkeypatch.setattr(type(one.server.contexts), "_to_read", _full_disk)
        more = {"documents": [{"name": "b", "text": text[:-2]}]}
        assert httpx.post(f"{one.url}/v1/contexts/shelf/documents", json=more, timeout=60).status_code == 202
        page.evaluate("read.set('ID', 'shelf')".replace("ID", httpx.get(f"{one.url}/v1/contexts/shelf").json()["id"]))
        page.evaluate("look()")
        expect(page.locator("#error")).to_have_text(re.compile("shelf is not read: the server could not write"))


def _full_disk(contexts, record):
    raise OSError(28, "No space left on device")


def test_the_key_is_asked_for_where_the_server_wants_one(browser, reader, library, tmp_path):
    key = new_key(tmp_path / "keys.json", "anna", Quota())
    known = Keys.load(tmp_path / "keys.json")
    with running(*reader, given={"library": library}, keys=known) as one, opened(browser, one) as page:
        expect(page.locator("#key")).to_be_visible()
        assert page.locator("#error").is_hidden()
        page.locator("#key").fill("lm-wrong")
        page.locator("#key").press("Enter")
        expect(page.locator("#error")).to_have_text(re.compile("valid API key"))
        page.locator("#key").fill(key)
        page.locator("#key").press("Enter")
        expect(page.locator("#context option:checked")).to_have_text(re.compile("library"))
        assert page.locator("#error").is_hidden()
        ask(page, "where are the keys ?", 3)
        expect(page.locator("#status")).to_have_text(re.compile("3 tokens"))


def test_no_key_is_asked_for_where_none_is_wanted(page):
    assert page.locator("#key").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_that_of_the_reader_and_can_be_turned(browser, served, scheme):
    with opened(browser, served, PHONE, color_scheme=scheme) as page:
        colour = "getComputedStyle(document.body).backgroundColor"
        colours = {"light": "rgb(250, 248, 244)", "dark": "rgb(21, 22, 26)"}
        assert page.evaluate(colour) == colours[scheme]
        page.locator("#theme").click()
        assert page.evaluate(colour) == colours["dark" if scheme == "light" else "light"]
        page.locator("#context option").nth(1).wait_for(state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]  # nothing is cut off


def test_markup_in_a_question_or_an_answer_stays_text(page):
    page.evaluate(
        "showSources('<b>x</b>', [{document: '<img src=x>', first: 0, last: 1, weight: 0.5, text: '<i>t</i>'}])"
    )
    assert page.locator("#sources img, #sources i, #chosen b").count() == 0
    assert page.locator("#sources blockquote").text_content() == "<i>t</i>"


def test_a_server_that_refuses_is_shown(page):
    page.locator("#tokens").evaluate("input => input.removeAttribute('max')")
    page.locator("#kind").select_option("text")
    ask(page, "jim ", 100_000)
    page.locator("#error").wait_for()
    assert "at most" in page.locator("#error").text_content()
    ask(page, "jim ", 2)
    expect(page.locator("#error")).to_be_hidden()
