"""Tables cell by cell: measured beside the paper's, nothing left out and nothing averaged that differs."""

import math

from measurements import add_perplexities, full, landmark, passkey

from reproduce.tables import names
from reproduce.tables.results import Results
from reproduce.tables.tables import TABLES, markdown

BY_ID = {table.id: table for table in TABLES}


def rows(results: Results, table: str) -> list[list[str]]:
    """The cells of the table, its heading first."""
    lines = markdown(BY_ID[table], results).splitlines()
    return [line.strip("| ").split(" | ") for line in lines if "---" not in line]


def test_every_table_is_told():
    assert tuple(BY_ID) == names.TABLES


def test_rows_are_told_apart_by_settings_that_the_table_shows():
    for table in TABLES:
        for row in table.rows:
            assert set(row.where) <= set(table.settings), (table.id, row.where)


def test_nothing_measured_shows_every_row_of_the_paper(results: Results):
    heading, *found = rows(results, names.LANGUAGE_MODELING)
    assert heading == [
        *("method", "read length", "local", "XL cache", "blocks", "k", "books", "math, one book"),
        *(
            "keys attended",
            "keys scored besides",
            "MFLOPs of attention",
            "paper: keys",
            "paper: PG-19",
            "paper: arXiv math",
            "seeds",
            "steps",
        ),
    ]
    never = ["not measured yet"] * 5
    assert found[0] == ["full attention", "512", "512", "-", "-", "-", *never, "512", "16.12", "4.01", "-", "-"]
    assert found[1] == ["full attention", "512", "360", "-", "-", "-", *never, "360", "16.76", "4.31", "-", "-"]
    assert ["landmark", "4,096", "250", "-", "80", "4", *never, "470", "14.72", "3.18", "-", "-"] in found
    assert ["Transformer-XL", "4,096", "256", "256", "-", "-", *never, "512", "14.55", "-", "-", "-"] in found
    assert ["Memorizing Transformer", "2,048", "-", "-", "-", "-", *never, "-", "-", "-", "-", "-"] in found
    assert len(found) == 13 + 2 + 4


def test_cells_hold_means_intervals_and_seeds(results: Results):
    costs = {"attended": 351.4, "scored": 23.6, "attention_flops": 1.234e6}
    add_perplexities(results, landmark(2048, 4), *map(math.exp, (2.9, 3.0, 3.1)), **costs)
    add_perplexities(results, landmark(2048, 4, "math"), 5.0, **costs)
    row = next(row for row in rows(results, names.LANGUAGE_MODELING) if row[:6] == landmark_cells("2,048", "40", "4"))
    # exp(3), exp(3 -+ 4.3027 * 0.1 / sqrt(3)); 5 exp(-+ 2.2622 * 0.01)
    assert row[6:8] == ["20.09 (15.67 to 25.75)", "5.00 (4.89 to 5.11)†"]
    assert row[8:] == ["351", "24", "1.23", "460", "14.92", "3.35", "3", "100"]


def landmark_cells(read_length: str, blocks: str, retrieve: str) -> list[str]:
    return ["landmark", read_length, "250", "-", blocks, retrieve]


def test_a_corpus_that_is_missing_says_so(results: Results):
    add_perplexities(results, full(), 20.0, se=None)
    assert rows(results, names.LANGUAGE_MODELING)[1][6:9] == ["20.00 (no interval)", "not measured yet", "-"]


def test_other_settings_get_rows_of_their_own(results: Results):
    add_perplexities(results, landmark(2048, 4, blocks=33), 20.0)
    found = rows(results, names.LANGUAGE_MODELING)
    assert found[-1][:7] == [*landmark_cells("2,048", "33", "4"), "20.00 (19.55 to 20.46)†"]
    assert next(row for row in found if row[:6] == landmark_cells("2,048", "40", "4"))[6] == "not measured yet"


def test_what_no_column_tells_is_told_in_the_cell(results: Results):
    add_perplexities(results, full() | {"steps": 1000}, 20.0, se=None)
    add_perplexities(results, full() | {"steps": 2000}, 18.0, se=None)
    row = rows(results, names.LANGUAGE_MODELING)[1]
    assert row[6] == "steps 1,000: 20.00 (no interval); steps 2,000: 18.00 (no interval)"
    assert row[-2:] == ["1", "1,000, 2,000"]


def test_selection_stands_beside_table_2(results: Results):
    setting = {"table": names.SELECTION, "method": names.LANDMARK, "corpus": "books", "selection": "per_head"}
    add_perplexities(results, setting | {"read_length": 4096, "retrieve": 4}, 20.0, se=None)
    found = rows(results, names.SELECTION)[1:]
    assert " ".join(row[5] for row in found) == "15.14 14.92 14.72 15.48 15.10 14.95 15.44 15.04 14.89"
    assert [row[4] for row in found] == ["not measured yet"] * 5 + ["20.00 (no interval)"] + ["not measured yet"] * 3
    assert found[5][:4] == ["books", "per_head", "4,096", "4"]


def test_a_table_without_numbers_of_the_paper_keeps_its_places(results: Results):
    setting = {"table": names.RETRIEVE, "method": names.LANDMARK, "corpus": "books", "read_length": 4096}
    add_perplexities(results, setting | {"retrieve": 4}, 20.0, se=None)
    add_perplexities(results, setting | {"retrieve": 3}, 21.0, se=None)
    found = rows(results, names.RETRIEVE)[1:]
    assert [row[3] for row in found] == ["1", "2", "4", "8", "16", "3"]
    assert [row[4] for row in found] == [
        *["not measured yet"] * 2,
        "20.00 (no interval)",
        *["not measured yet"] * 2,
        "21.00 (no interval)",
    ]


def test_skipped_retrievals_are_held_against_no_gate(results: Results):
    setting = {"table": names.MISS_GATE, "corpus": "books", "read_length": 2048}
    add_perplexities(results, setting | {"method": names.LANDMARK}, 20.0, se=None)
    add_perplexities(results, setting | {"method": names.WITH_MISS_GATE, "threshold": 0.3}, 20.3, se=None, skipped=0.51)
    found = rows(results, names.MISS_GATE)[1:]
    assert found[0][4:] == ["-", "20.00 (no interval)", "+0.00", "0 %", "+0.00", "1", "100"]
    assert found[3] == ["books", names.WITH_MISS_GATE, "0.1", "-", *["not measured yet"] * 3, "23 %", "+0.10", "-", "-"]
    assert found[4][2:9] == ["0.3", "2,048", "51.0 %", "20.30 (no interval)", "+0.30", "57 %", "+0.15"]


def test_passkeys_are_pooled_over_depths(results: Results):
    for depth, right in ((0.0, 10), (0.5, 8)):
        results.add(passkey(32768, right, 10, depth=depth))
    found = rows(results, names.PASSKEY)[1:]
    row = next(row for row in found if row[3] == "32,768" and row[0] == names.LANDMARK)
    # Wilson's interval of 18 of 20
    assert row[4:8] == ["90.0 % (69.9 % to 97.2 %)", "20", "80.0 % at depth 0.5", "98 % at 32,070 tokens"]
    assert [row[0] for row in found if row[4] == "not measured yet"] == [
        *[names.LANDMARK] * 3,
        *(names.BASE_MODEL, names.FULL, names.SINKS, names.TRANSFORMER_XL, names.MEMORIZING),
    ]


def test_the_learning_curve_is_in_order_of_tokens(results: Results):
    for steps in (400, 0, 50):
        setting = {"table": names.CONVERSION, "method": names.LANDMARK, "steps": steps, "tokens_trained": steps * 1000}
        add_perplexities(results, setting | {"read_length": 2048, "corpus": "books"}, 20.0, se=None)
        results.add(setting | {"seed": 0, "read_length": 8192, "accuracy": 0.5, "samples": 4})
    found = rows(results, names.CONVERSION)[2:]
    assert [row[2] for row in found] == ["0", "50,000", "400,000"]
    assert found[0][3:7] == ["2,048", "20.00 (no interval)", "8,192", "50.0 % (15.0 % to 85.0 %)"]


def test_speed_is_held_against_full_attention_on_the_same_machine(results: Results):
    cost = {"table": names.THROUGHPUT, "read_length": 512, "seed": 0, "steps": 4}
    results.add(cost | {"method": names.FULL, "tokens_per_second": 4000.0, "memory_mb": 900, "machine": "a"})
    results.add(cost | {"method": names.LANDMARK, "tokens_per_second": 3000.0, "memory_mb": 950, "machine": "a"})
    results.add(cost | {"method": names.LANDMARK, "tokens_per_second": 9000.0, "machine": "b", "steps": 8})
    found = rows(results, names.THROUGHPUT)[1:]
    assert found[0] == ["a", names.FULL, "512", "4,000", "1.00", "900", "1", "4"]
    assert found[1] == ["a", names.LANDMARK, "512", "3,000", "0.75", "950", "1", "4"]
    assert found[2] == ["b", names.LANDMARK, "512", "9,000", "-", "-", "1", "8"]
    assert found[3][1:4] == [names.TRANSFORMER_XL, "-", "not measured yet"]


def test_bars_in_names_do_not_break_a_table(results: Results):
    add_perplexities(results, full() | {"method": "a|b"}, 20.0)
    assert "| a\\|b | 512 |" in markdown(BY_ID[names.LANGUAGE_MODELING], results)
