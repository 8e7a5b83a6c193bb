"""The page in a browser: a context is picked, a question asked, a sentence clicked; nothing else is asked for."""

import copy
import re

import pytest
from serving import NAME, running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")


@pytest.fixture
def page(browser, served):
    """The page, which may say nothing on the console, throw nothing and ask nobody but its server."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page, said, asked = context.new_page(), [], []
    page.set_default_timeout(120_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    context.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    page.locator("#context option").nth(1).wait_for(state="attached")
    yield page
    assert [text for text in said if "400 (Bad Request)" not in text] == []  # which Chromium says of every refusal
    assert {url.startswith(served.url) for url in asked} == {True}
    context.close()


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
    assert shown == [source["text"] for source in answer.landmark["sentences"][-1]["sources"]]
    assert "30 tokens" in page.locator("#status").text_content()


def test_a_question_is_asked_as_a_chat_and_can_be_stopped(page, served):
    ask(page, "where are the keys ?", 4000)
    sync_api.expect(page.locator("#answer")).to_have_text(re.compile(".{5}", re.DOTALL), timeout=60_000)
    page.locator("#stop").click()
    sync_api.expect(page.locator("#status")).to_have_text("stopped", timeout=60_000)
    assert page.locator("#ask").is_enabled()


def test_a_model_that_cannot_chat_is_asked_to_continue(browser, reader, library):
    model, tokenizer = reader
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with running(model, plain, given={"library": library}) as one:
        context = browser.new_context()
        page = context.new_page()
        page.goto(one.url)
        page.locator("#context option").nth(1).wait_for(state="attached")
        sync_api.expect(page.locator("#kind")).to_have_value("text")
        assert page.locator("#kind option[value=chat]").is_disabled()
        ask(page, "jim looked at the ", 5)
        sync_api.expect(page.locator("#status")).to_have_text(re.compile("5 tokens"), timeout=60_000)
        context.close()


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
    page.locator("#status.error").wait_for()
    assert "at most" in page.locator("#status").text_content()
