"""Protects the numbers of the tables: each equals scikit-learn's on the images it is of."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    matthews_corrcoef,
    recall_score,
    roc_auc_score,
)

from primia_jax.campaigns.study import judging
from primia_jax.campaigns.study.judging import Choice
from primia_jax.campaigns.study.readers import UNREAD, Reader
from primia_jax.evaluation import agreement
from tests.campaigns.study import made_up


@pytest.fixture(scope="module")
def study():
    return made_up.found(wrong_secure=5, wrong_local=3)


def test_table_1a_equals_scikit_learn(study):
    found, sets, raters = study
    for row, rater in zip(found["table_1a"]["raters"], raters):
        for each in sets:
            if each.key not in rater.probabilities:
                assert each.key not in row["sets"]
                continue
            scores, read = row["sets"][each.key], rater.read(each.key)
            labels = each.labels[read]
            for i, p in enumerate(rater.probabilities[each.key][:, read]):
                named = p.argmax(1)
                assert scores["n"] == read.sum()
                assert scores["accuracy"]["by_seed"][i] == pytest.approx(
                    accuracy_score(labels, named)
                )
                assert scores["mcc"]["by_seed"][i] == pytest.approx(
                    matthews_corrcoef(labels, named)
                )
                recalls = recall_score(labels, named, average=None)
                for name, value in zip(made_up.CLASSES, recalls):
                    assert scores["sensitivity"][name]["by_seed"][i] == pytest.approx(value)
                if rater.kind == "reader":
                    assert scores["roc_auc"] is None  # one point is no curve
                else:
                    auc = roc_auc_score(labels, p, multi_class="ovr", average="weighted")
                    assert scores["roc_auc"]["by_seed"][i] == pytest.approx(auc)
            mcc = scores["mcc"]
            assert mcc["mean"] == pytest.approx(np.mean(mcc["by_seed"]))
            assert mcc["low"] <= mcc["mean"] <= mcc["high"]
            if rater.kind == "model":
                assert mcc["std"] == pytest.approx(np.std(mcc["by_seed"], ddof=1))


def test_tables_1b_and_1c_are_of_the_images_that_both_rated(study):
    found, sets, raters = study
    first = sets[1]
    b, c = (found[name]["test_1"]["pairs"] for name in ("table_1b", "table_1c"))
    pairs = list(itertools.combinations(raters, 2))
    assert len(b) == len(c) == len(pairs) == 10
    for mcnemar, kappa, (one, two) in zip(b, c, pairs):
        both = one.read("test_1") & two.read("test_1")
        assert mcnemar["n"] == kappa["n"] == both.sum()
        count = 1 if one.kind == two.kind == "reader" else len(made_up.SEEDS)
        assert len(mcnemar["by_seed"]) == len(kappa["seeds"]) == count
        for i in range(count):
            x, y = (
                r.probabilities["test_1"][min(i, r.seeds("test_1") - 1), both].argmax(1)
                for r in (one, two)
            )
            expected = agreement.mcnemar(first.labels[both], x, y)
            assert mcnemar["by_seed"][i]["p"] == expected.p
            assert kappa["seeds"][i]["value"] == pytest.approx(cohen_kappa_score(x, y))
    assert [pair["p_holm"] for pair in b] == agreement.holm([pair["p"] for pair in b])


def test_readers_who_read_no_image_in_common_are_not_compared():
    _, sets, raters = made_up.found()
    labels = sets[1].labels
    halves = [
        made_up.judging.human(made_up.Reader(name, np.where(np.arange(60) < 30, *pair)), 3)
        for name, pair in (("X", (labels, -1)), ("Y", (-1, labels)))
    ]
    numbers = made_up.judging.judge(
        sets, made_up.CLASSES, [*raters[:3], *halves], made_up.SEEDS,
        made_up.Choice(50, 0, 0.02),
    )  # fmt: skip
    last = numbers["table_1b"]["test_1"]["pairs"][-1]
    assert (last["n"], last["p"]) == (0, None)
    assert numbers["table_1c"]["test_1"]["pairs"][-1]["mean"] is None


def test_equivalence_is_of_paired_differences(study):
    found, sets, raters = study
    for each in sets:
        judged = found["equivalence"][each.key]
        differences = [
            matthews_corrcoef(each.labels, a.argmax(1))
            - matthews_corrcoef(each.labels, b.argmax(1))
            for a, b in zip(raters[0].probabilities[each.key], raters[2].probabilities[each.key])
        ]
        assert judged["difference"]["mean"] == pytest.approx(np.mean(differences))
        assert judged["difference"]["high"] < 0.1  # the local model is right wherever ours is
    same = made_up.found(wrong_secure=2, wrong_local=2)[0]["equivalence"]["test_1"]
    assert same["difference"]["mean"] == 0
    far = made_up.found(wrong_secure=30, wrong_local=2)[0]["equivalence"]["test_1"]
    assert far["verdict"] == "different"


def test_sixty_images_without_a_difference_show_no_equivalence():
    """That they show none leaves 6 % of images that could be told differently."""
    same = made_up.found(wrong_secure=2, wrong_local=2)[0]["equivalence"]["test_1"]
    assert same["verdict"] == "undecided"
    assert same["difference"]["high"] == pytest.approx(1.5 * (1 - 0.025 ** (1 / 60)))


def test_models_that_name_one_class_are_not_called_equivalent():
    sets = (made_up.image_set("test_1"),)
    constant = np.tile([0.8, 0.1, 0.1], (2, 60, 1))
    raters = [judging.model(mode, {"test_1": constant}) for mode in judging.MODES]
    found = judging.judge(sets, made_up.CLASSES, raters, (0, 1), Choice(20, 0, 0.02))
    judged = found["equivalence"]["test_1"]
    assert judged["verdict"] == "undecided" and judged["difference"]["mean"] is None


def test_p_values_are_adjusted_training_by_training_over_all_pairs(study):
    found, *_ = study
    pairs = found["table_1b"]["test_1"]["pairs"]
    models = [pair for pair in pairs if len(pair["by_seed"]) > 1]
    for i in range(2):
        tests = [pair["by_seed"][min(i, len(pair["by_seed"]) - 1)] for pair in pairs]
        adjusted = agreement.holm([test["p"] for test in tests])
        for test, p in zip(tests, adjusted):
            assert test["p_holm"] >= p
        assert [pair["by_seed"][i]["p_holm"] for pair in models] == [
            p for pair, p in zip(pairs, adjusted) if len(pair["by_seed"]) > 1
        ]


def test_a_reader_of_one_class_has_no_mcc():
    labels = made_up.image_set("test_1").labels
    read = np.where((labels == 0) & (np.arange(60) < 9), labels, UNREAD)
    found = judging.judge(
        (made_up.image_set("test_1"),),
        made_up.CLASSES,
        [*made_up.found(readers=False, sets=("validation", "test_1"))[2],
         judging.human(Reader("Dr. C", read), 3)],
        made_up.SEEDS,
        Choice(20, 0, 0.02),
    )  # fmt: skip
    reader = found["table_1a"]["raters"][-1]["sets"]["test_1"]
    assert reader["mcc"] is None and reader["accuracy"]["mean"] == 1
