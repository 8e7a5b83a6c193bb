"""The page in a browser: it opens from a file, shows what was read, obeys keys and no text, and asks for nothing."""

from contextlib import contextmanager

import pytest
from made_views import HOSTILE, LETTERS, made_up, tokenizer_of

DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A view, and the file of its page."""
    view, _ = made_up(tokenizer_of("byte_level"), ("Lord Jim", LETTERS * 120), (HOSTILE, LETTERS + HOSTILE * 2))
    path = tmp_path_factory.mktemp("page") / "page.html"
    view.save(path)
    return view, path


@contextmanager
def opened(browser, path, viewport=None, **options):
    """The page, which may say nothing on the console, throw nothing and ask for nothing but itself."""
    context = browser.new_context(viewport=viewport or DESK, reduced_motion="reduce", **options)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    context.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    page.wait_for_timeout(50)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    context.close()


@pytest.fixture
def page(browser, made):
    with opened(browser, made[1]) as page:
        yield page


VISIBLE = "text => visible(text)"


def marks(page) -> dict[int, str]:
    """The marked text of each block that is rendered and was read, as shown."""
    return page.evaluate(
        """() => {
            const found = {};
            for (const mark of document.querySelectorAll("#reader mark[data-block]")) {
                found[mark.dataset.block] = (found[mark.dataset.block] || "") + mark.textContent;
            }
            return found;
        }"""
    )


def test_it_opens_and_shows_the_answer(page, made):
    view, _ = made
    assert page.locator(".token").count() == len(view.tokens)
    assert page.locator("#tokens").text_content() == view.texts[-1].text
    assert page.locator("#prompt").text_content() == view.texts[-2].text
    assert page.locator("#chosen").text_content() == "all generated tokens"
    assert f"{view.texts[-1].stop:,} tokens" in page.locator("#about").text_content()
    for canvas in ("overview", "strip", "heat", "grid"):
        coloured = page.evaluate(
            f"""() => {{ const c = document.querySelector('#{canvas}');
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            const pixels = Array.from({{ length: d.length / 4 }}, (_, i) => d.slice(4 * i, 4 * i + 3).join());
            return new Set(pixels).size; }}"""
        )
        assert coloured > 2, canvas


def test_every_passage_on_the_page_is_that_of_the_view(page, made):
    view, _ = made
    expected = [[passage.text for passage in view.passages(block)] for block in range(view.block_count)]
    found = page.evaluate("Array.from({ length: facts.blocks }, (_, block) => segmentsOf(block).map(passageText))")
    assert found == expected
    assert page.evaluate("segmentCount") == sum(1 for b in range(view.block_count) for _ in view.passages(b))


def test_a_click_highlights_what_the_token_read(page, made):
    view, _ = made
    page.locator(".token").nth(2).click()
    assert page.locator(".token[aria-selected=true]").get_attribute("data-token") == "2"
    ranked = view.weights_of_blocks(2)
    shown = page.evaluate("shown.ranks")
    assert [block for block, _ in shown] == [block for block, _ in ranked]
    assert [weight for _, weight in shown] == pytest.approx([weight for _, weight in ranked], abs=1e-4)
    strongest = ranked[0][0]
    expected = page.evaluate(VISIBLE, "".join(passage.text for passage in view.passages(strongest)))
    assert page.locator(f'#reader mark[data-block="{strongest}"]').first.is_visible()
    assert marks(page)[str(strongest)] == expected
    strength = "e => Number(getComputedStyle(e).getPropertyValue('--strength'))"
    found = {
        int(block): page.locator(f'#reader mark[data-block="{block}"]').first.evaluate(strength)
        for block in marks(page)
    }
    assert found[strongest] == max(found.values())
    weights = dict(ranked)
    for one in found:
        for other in found:
            assert (found[one] >= found[other]) == (weights[one] >= weights[other]) or found[one] == found[other]
    assert page.locator("#list button").first.get_attribute("data-block") == str(strongest)
    assert f"{1 - view.local[2].mean():.0%}".rstrip("%") in page.locator("#shares").text_content()


def test_by_layer_and_head(page, made):
    view, _ = made
    page.locator(".token").nth(1).click()
    page.locator("#layer").select_option("2")  # number 3 in the model
    page.locator("#head").select_option("1")
    expected = {
        int(block): float(weight)
        for block, weight in zip(view.blocks[1, 2, 1], view.weights[1, 2, 1], strict=True)
        if block >= 0
    }
    found = dict(page.evaluate("[...shown.reads]"))
    totals = {
        block: sum(w for b, w in zip(view.blocks[1, 2, 1], view.weights[1, 2, 1], strict=True) if b == block)
        for block in expected
    }
    assert found == pytest.approx(totals, abs=1e-4)
    assert page.locator("#layer option:checked").text_content() == "3"


def test_keys(page, made):
    view, _ = made
    token = ".token[aria-selected=true]"

    def number():
        return int(page.locator(token).get_attribute("data-token"))

    page.keyboard.press("ArrowRight")
    assert number() == 0
    page.keyboard.press("ArrowRight")
    assert number() == 1
    assert page.evaluate("document.activeElement.dataset.token") == "1"
    page.keyboard.press("End")
    assert number() == len(view.tokens) - 1
    page.keyboard.press("ArrowLeft")
    assert number() == len(view.tokens) - 2
    page.keyboard.press("ArrowDown")
    assert page.locator("#list button[aria-current=true]").get_attribute("data-rank") == "1"
    page.keyboard.press("l")
    assert page.locator("#layer").input_value() == "0"
    page.keyboard.press("Shift+L")
    assert page.locator("#layer").input_value() == "-1"
    page.keyboard.press("Shift+H")
    assert page.locator("#head").input_value() == "1"
    page.keyboard.press("a")
    assert page.locator(token).count() == 0
    page.keyboard.press("+")
    page.wait_for_timeout(100)
    assert page.evaluate("shown.to - shown.from") == pytest.approx(view.block_count / 2)
    page.keyboard.press("0")
    assert page.evaluate("[shown.from, shown.to]") == [0, view.block_count]
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()


def test_search(page, made):
    view, _ = made
    whole = "".join(text.text for text in view.texts)
    page.keyboard.press("/")
    page.keyboard.type("CALM  and")
    page.keyboard.press("Enter")
    count = whole.count("calm and")
    first = page.evaluate("reader.hit")  # the one behind the open passage
    assert page.locator("#hits").text_content() == f"{first + 1} / {count}"
    assert page.locator("#reader mark.hit.current").first.is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    assert page.locator("#hits").text_content() == f"{(first + 1) % count + 1} / {count}"
    page.keyboard.press("Shift+N")
    page.keyboard.press("Shift+N")
    assert page.locator("#hits").text_content() == f"{(first - 1) % count + 1} / {count}"
    page.locator("#query").fill("(no such [thing")
    page.keyboard.press("Enter")
    assert page.locator("#hits").text_content() == "none"
    page.locator("#query").fill("\U0001f600\U0001f468")
    page.keyboard.press("Enter")
    shown = page.evaluate(
        "[...document.querySelectorAll('#reader mark.hit.current')].map((m) => m.textContent).join('')"
    )
    assert shown == "\U0001f600\U0001f468"


def test_a_click_in_the_map_opens_the_passage(page, made):
    view, _ = made
    box = page.locator("#heat").bounding_box()
    token, (block, _) = 3, view.weights_of_blocks(3)[0]
    x = (block + 0.5) / view.block_count * box["width"]
    page.mouse.click(box["x"] + x, box["y"] + (token + 0.5) * page.evaluate("heatRow()"))
    assert page.locator(".token[aria-selected=true]").get_attribute("data-token") == "3"
    assert page.locator(".segment.current").count() == 1
    current = page.evaluate("blockOf(reader.current)")
    assert abs(current - block) * box["width"] / view.block_count <= 5
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert page.evaluate("shown.to - shown.from") < view.block_count


@pytest.mark.parametrize("canvas", ["#strip", "#heat"])
def test_two_fingers_zoom_the_map(browser, made, canvas):
    view, _ = made

    def spread(*distances):
        """Two fingers around the middle, so far apart one after the other."""
        for number, apart in enumerate(distances):
            points = [{"x": middle + side * apart / 2, "y": y, "id": side + 1} for side in (-1, 1)]
            touch("touchMove" if number else "touchStart", points)
        touch("touchEnd", [])
        return page.evaluate("[shown.from, shown.to]")

    with opened(browser, made[1], PHONE, has_touch=True) as page:
        session = page.context.new_cdp_session(page)

        def touch(kind, points):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        page.locator(canvas).scroll_into_view_if_needed()
        box = page.locator(canvas).bounding_box()
        middle, y = box["x"] + box["width"] / 2, box["y"] + min(box["height"], 20) / 2
        start, stop = spread(*range(40, 201, 10))
        assert stop - start == pytest.approx(view.block_count / 5, rel=0.1)
        assert (start + stop) / 2 == pytest.approx(view.block_count / 2, rel=0.1)
        assert spread(*range(200, 19, -10)) == [0, view.block_count]
        assert page.evaluate("visualViewport.scale") == 1, "the page itself does not grow"


def test_the_text_grows_where_it_is_scrolled_to(page):
    page.evaluate("openBlock(1400)")
    low, high = page.evaluate("[reader.low, reader.high]")
    page.evaluate("document.querySelector('#reader').scrollTop = 0")
    page.wait_for_timeout(100)
    page.evaluate("document.querySelector('#reader').scrollTop = 1e6")
    page.wait_for_timeout(100)
    assert page.evaluate("reader.low") < low
    assert page.evaluate("reader.high") > high
    segments = page.evaluate("[...document.querySelectorAll('.segment')].map((e) => Number(e.dataset.segment))")
    assert segments == list(range(segments[0], segments[-1] + 1))


def test_hostile_text_is_shown_and_not_obeyed(page, made):
    view, _ = made
    second = view.texts[1]
    page.evaluate(f"openBlock({second.stop // view.block_size - 1})")
    page.evaluate("reader.low > firstSegments[1] && reader.extendBefore(firstSegments[1])")
    shown = page.evaluate(
        """() => [...document.querySelectorAll('.segment')].filter((e) => textOf(Number(e.dataset.segment)) === 1)
            .map((e) => e.textContent).join('')"""
    )
    # A line end of two characters is one on the screen, unless blocks part it.
    plain = shown.replace("\\u000d\n", "\n")
    assert plain == page.evaluate(VISIBLE, second.text)
    assert "\\u202eevil\\u202c" in plain
    assert "</script><script>throw" in plain
    assert page.evaluate(VISIBLE, HOSTILE) in page.locator("#reader h3").all_text_contents()
    page.locator(".token").first.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_fits_and_can_be_read(browser, made, viewport, scheme):
    with opened(browser, made[1], viewport, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.locator("#reader").bounding_box()["height"] > 150
        light = "e => getComputedStyle(e).backgroundColor.match(/[0-9]+/g).map(Number).reduce((a, b) => a + b) > 384"
        assert page.locator("body").evaluate(light) == (scheme == "light")
        page.locator("#theme").click()
        assert page.locator("body").evaluate(light) == (scheme == "dark")
        page.locator(".token").nth(1).click()
        strongest = f'#reader mark[data-block="{page.evaluate("shown.ranks[0][0]")}"] >> nth=0'
        chosen = ".token[aria-selected=true]"
        for text in ("#about", "#shares", "#chosen", "#prompt", "#list .snippet >> nth=0", chosen, strongest):
            assert contrast(page.locator(text)) >= 4.5, text


def contrast(element) -> float:
    """Of a text and what lies behind it, as WCAG 2.2 defines it."""
    text, *behind = element.evaluate(
        """e => { const style = (e) => getComputedStyle(e); const found = [style(e).color];
        for (let b = e; b; b = b.parentElement) found.push(style(b).backgroundColor);
        return found.map((c) => c.match(/[0-9.]+/g).map(Number)); }"""
    )
    ground = [0.0, 0.0, 0.0]
    for *colour, alpha in reversed([[*colour[:3], *(colour[3:] or [1])] for colour in behind]):
        ground = [alpha * c + (1 - alpha) * g for c, g in zip(colour, ground, strict=True)]
    light, dark = sorted((luminance(colour) for colour in (text[:3], ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
