"""The demo data: distinct, the same everywhere, honest about itself, and not too easy."""

import csv
import hashlib
import math
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from itertools import pairwise

import pytest

from fedpact.simulations.reports import VOICES, Report, reports, write_demo_data

KEYS = [voice.key for voice in VOICES]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo_data(tmp_path_factory.mktemp("demo"))


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [Report(row["text"], row["label"]) for row in csv.DictReader(file)]


def digest(rows):
    text = "\n".join(f"{row.label}\t{row.text}" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def serious_share(rows):
    return sum(row.label == "serious" for row in rows) / len(rows)


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


def naive_bayes_accuracy(training, test):
    """How well the words alone, whatever their order, tell the labels of `test`."""
    seen = {"serious": Counter(), "not serious": Counter()}
    totals = Counter(row.label for row in training)
    for row in training:
        seen[row.label].update(words(row.text))

    def score(found, label):
        evidence = sum(
            math.log((seen[label][word] + 1) / (totals[label] + 2)) for word in found
        )
        return evidence + math.log(totals[label])

    right = 0
    for row in test:
        scores = {label: score(words(row.text), label) for label in seen}
        right += max(scores, key=scores.get) == row.label
    return right / len(test)


def test_three_institutions_of_three_sectors_write():
    assert [(voice.key, voice.institution, voice.sector) for voice in VOICES] == [
        ("hospital", "University Hospital", "academia"),
        ("maker", "Drug Maker", "industry"),
        ("agency", "Health Agency", "government"),
    ]


def test_the_demo_data_are_large_and_every_text_in_them_is_distinct(demo):
    assert demo.counts == {"hospital": 2400, "maker": 2100, "agency": 1800}
    assert demo.public_test_count == 600
    training = [row for key in KEYS for row in read(demo.sites[key])]
    test = read(demo.public_test)
    assert (len(training), len(test)) == (6300, 600)
    assert len({row.text for row in training + test}) == 6900


def test_no_text_is_written_twice_even_when_chance_repeats_itself(tmp_path, monkeypatch):
    def forgetful(voice, *, serious, rng):
        return f"{voice} {int(rng.random() * 300)}"

    monkeypatch.setattr("fedpact.simulations.reports.write_report", forgetful)
    small = write_demo_data(tmp_path, records=100)
    paths = [*small.sites.values(), small.public_test]
    texts = [row.text for path in paths for row in read(path)]
    assert len(texts) == len(set(texts)) == 900


def test_the_files_have_the_promised_names_and_columns(demo):
    folder = demo.readme.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.txt",
        "agency.csv",
        "hospital.csv",
        "maker.csv",
        "public_test.csv",
    ]
    for path in [*demo.sites.values(), demo.public_test]:
        assert path.read_text(encoding="utf-8").startswith("text,label\n")
        assert {row.label for row in read(path)} == {"serious", "not serious"}


def test_the_readme_says_that_everything_is_synthetic_and_how_much_there_is(demo):
    readme = demo.readme.read_text(encoding="utf-8")
    assert "Everything in this folder is synthetic." in readme
    assert "No real person is described" in readme
    assert "hospital.csv: 2400 reports" in readme
    assert "public_test.csv: 600 more" in readme


def test_the_public_test_mixes_the_three_voices_equally(demo):
    test = read(demo.public_test)
    letters = sum(bool(re.match("Dear|To whom|Good day", row.text)) for row in test)
    calls = sum("aller" in row.text for row in test)
    assert (letters, calls) == (200, 200)


def test_the_number_of_records_can_be_chosen(tmp_path):
    small = write_demo_data(tmp_path / "new" / "folder", records=25)
    assert small.counts == dict.fromkeys(KEYS, 25)
    assert [len(read(small.sites[key])) for key in KEYS] == [25, 25, 25]
    assert len(read(small.public_test)) == small.public_test_count == 600


@pytest.mark.parametrize("records", [0, -1])
def test_an_institution_without_records_is_refused(tmp_path, records):
    with pytest.raises(ValueError, match="at least one record"):
        write_demo_data(tmp_path, records=records)


def test_an_unknown_voice_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'clinic'.*hospital, maker, agency"):
        reports("clinic", 1, 0)


def test_a_negative_number_of_reports_is_refused():
    with pytest.raises(ValueError, match="-1"):
        reports("hospital", -1, 0)


@pytest.mark.parametrize("key", KEYS)
def test_the_seed_decides_and_a_smaller_number_gives_the_beginning(key):
    assert reports(key, 60, 7) == reports(key, 60, 7)
    assert reports(key, 20, 7) == reports(key, 60, 7)[:20]
    assert reports(key, 0, 7) == []
    other = {row.text for row in reports(key, 60, 8)}
    assert len(other & {row.text for row in reports(key, 60, 7)}) < 3


def test_another_process_with_other_hashes_writes_the_same_reports():
    code = (
        "import hashlib\n"
        "from fedpact.simulations.reports import VOICES, reports\n"
        "rows = [row for voice in VOICES for row in reports(voice.key, 50, 3)]\n"
        "text = '\\n'.join(f'{row.label}\\t{row.text}' for row in rows)\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    other = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    here = digest([row for key in KEYS for row in reports(key, 50, 3)])
    assert other.stdout.strip() == here


@pytest.mark.parametrize(
    ("key", "shortest", "longest"),
    [("hospital", 20, 30), ("maker", 36, 48), ("agency", 48, 62)],
)
def test_each_voice_has_its_length(key, shortest, longest):
    lengths = [len(row.text.split()) for row in reports(key, 500, 0)]
    assert shortest < statistics.mean(lengths) < longest


@pytest.mark.parametrize("voice", VOICES, ids=KEYS)
def test_each_voice_has_its_label_balance(voice):
    noise = voice.label_noise
    expected = voice.serious_share * (1 - noise) + (1 - voice.serious_share) * noise
    assert serious_share(reports(voice.key, 2000, 0)) == pytest.approx(expected, abs=0.035)


@pytest.mark.parametrize("voice", VOICES, ids=KEYS)
def test_each_voice_has_its_share_of_wrong_labels(voice, monkeypatch):
    def candid(_, *, serious, rng):
        return f"{'serious' if serious else 'not serious'}: {rng.random()}"

    monkeypatch.setattr("fedpact.simulations.reports.write_report", candid)
    rows = reports(voice.key, 5000, 0)
    wrong = sum(not row.text.startswith(f"{row.label}:") for row in rows)
    assert wrong / len(rows) == pytest.approx(voice.label_noise, abs=0.01)


def test_the_label_balances_of_the_voices_differ():
    shares = sorted(voice.serious_share for voice in VOICES)
    assert min(second - first for first, second in pairwise(shares)) >= 0.05


@pytest.mark.parametrize("key", KEYS)
def test_words_alone_tell_much_but_not_all(key):
    accuracy = naive_bayes_accuracy(reports(key, 2000, 0), reports(key, 1000, 1))
    assert 0.8 < accuracy < 0.96


def test_no_word_of_the_regulatory_criteria_gives_the_label_away():
    rows = [row for key in KEYS for row in reports(key, 1500, 0)]
    for word in ("admitted", "hospital", "intensive", "dialysis", "ward", "adrenaline", "home"):
        labels = [row.label for row in rows if word in words(row.text)]
        assert len(labels) > 50, word
        assert 0.02 < labels.count("serious") / len(labels) < 0.98, word


def test_a_classifier_of_one_institution_fails_at_the_others():
    training = reports("hospital", 2000, 0)
    at_home = naive_bayes_accuracy(training, reports("hospital", 500, 1))
    away = naive_bayes_accuracy(training, reports("agency", 500, 1))
    assert at_home - away > 0.1


@pytest.mark.parametrize("key", KEYS)
def test_the_texts_are_finished(key):
    for row in reports(key, 1500, 0):
        assert not re.search(r"[{}]|\s\s|^\s|\s$|\s[.,;]|\.\.", row.text), row.text
        assert row.text[0].isupper() or row.text[0].isdigit(), row.text


def test_every_voice_names_the_same_medicines():
    def medicines(key):
        found = Counter(word for row in reports(key, 1500, 0) for word in words(row.text))
        return {
            drug for drug in ("brelosartan", "olvacillin", "varnoxaban") if found[drug] > 50
        }

    assert medicines("hospital") == medicines("maker") == medicines("agency") != set()


def test_nobody_reports_their_own_death():
    text = (files("fedpact.simulations") / "report_phrases.toml").read_text(encoding="utf-8")
    assert '"died on {weekday}' in text
    letters = [row.text for row in reports("agency", 4000, 0)]
    assert any(re.search(r"\b(he|she) died on", letter) for letter in letters)
    assert not any(re.search(r"\bI died on", letter) for letter in letters)


def test_what_is_written_of_a_pregnancy_is_of_a_woman():
    notes = [row.text for row in reports("hospital", 3000, 0) if "/40" in row.text]
    assert len(notes) > 50
    assert not any(re.search(r"\d\d(yo )?M\b", note) for note in notes)
