"""Tables as data, ARFF and CSV: what is in the files is in the arrays, and every mistake in a file is named."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench.data import tables
from kdbench.data.dataset import Dataset
from kdbench.data.remarks import remarks
from kdbench.errors import UserError
from tests.test_sources import load, message, write

ARFF = """@relation 'x: -C 2'
% a comment
@attribute 'first one' numeric
@attribute colour {red, green, 'dark blue'}
@attribute a {0,1}
@attribute b {0,1}

@data
1.5,red,0,1
-2e1,'dark blue',1,1
{0 3, 1 green, 3 1}
"""


def test_arff_dense_and_sparse_with_several_labels(tmp_path):
    path = write(tmp_path / "x.arff", ARFF)
    labels = write(tmp_path / "x.xml", '<labels><label name="b"></label><label name="a"/></labels>')
    found = load("tables", train=path, test=path, labels_file=labels)
    assert (found.task, found.classes) == ("multi_label", ("a", "b"))
    assert found.x_train.tolist() == [[1.5, 1, 0, 0], [-20, 0, 0, 1], [3, 0, 1, 0]]
    assert found.y_train.tolist() == [[0, 1], [1, 1], [0, 1]]
    single = load("tables", train=path, test=path)
    assert (single.task, single.y_train.tolist(), single.x_train.shape) == ("classification", [0, 0, 0], (3, 5))


def test_csv_with_one_label_column_or_several(tmp_path):
    path = write(tmp_path / "x.csv", "id,f,label,g\na,1,yes,2\nb,3,no,4\nc,5,yes,6\nd,7,no,8\n")
    assert "column 'id' should be numbers, not 'a': name it in data.options.drop" in message(
        "tables", train=path, test_samples=2
    )
    found = load("tables", train=path, test_samples=2, drop=["id"])
    assert (found.classes, sorted(found.y_train), len(found.x_test)) == (("no", "yes"), [0, 1], 2)
    several = write(tmp_path / "y.csv", "f,a,b\n1,0,1\n2,1,1\n3,0,0\n")
    found = load("tables", train=several, test=several, labels=["a", "b"])
    assert (found.y_train.tolist(), found.x_train.tolist()) == ([[0, 1], [1, 1], [0, 0]], [[1], [2], [3]])
    assert "did you mean 'label'" in message("tables", train=path, test=path, label="lable")
    assert "label column 'f' should be 0 or 1" in message("tables", train=several, test=several, labels=["a", "f"])


def test_tables_without_training_labels(tmp_path):
    train = write(tmp_path / "x.csv", "f\n1\n2\n")
    test = write(tmp_path / "y.csv", "f,label\n1,yes\n2,no\n")
    found = load("tables", train=train, test=test, labelled=False)
    assert (found.y_train, found.y_test.tolist()) == (None, [1, 0])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("1.5,red,0,1", "1.5,red,0", "line 9: 3 entries, but 4 attributes"),
        ("1.5,red", "?,red", "column 'first one' should be numbers, not '?': fill it in"),
        ("1.5,red", "1.5,pink", "'colour' should be one of"),
        ("{0 3,", "{9 3,", "line 11: '9' should be an attribute's number, 0 to 3"),
        ("numeric", "string", "line 3: attribute 'first one' is string"),
        ("@data", "", "not an ARFF file"),
        ("1.5,red", "1e999,red", "NaN or infinite"),
        ("numeric", "{}", "line 3: attribute 'first one' has no values"),
    ],
)
def test_mistakes_in_an_arff_file_are_named(tmp_path, old, new, expected):
    path = write(tmp_path / "x.arff", ARFF.replace(old, new))
    assert expected in message("tables", train=path, test=path)


@given(
    st.text(max_size=60),
    st.lists(st.sampled_from([*ARFF.split("\n"), "@attribute", "{", "{}", "'", "@attribute x {}"]), max_size=12),
)
def test_any_text_is_arff_or_a_user_error(content, lines):
    for form in (content, "\n".join(lines), ARFF + content):
        try:
            assert len(tables.parse_arff(form, "any.arff")) > 0
        except UserError as error:
            assert str(error).startswith("any.arff")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*ARFF.split("\n"), "@attribute x {}", "{}", "1,red,x,1"]), max_size=14))
def test_any_arff_file_is_a_dataset_or_a_user_error(tmp_path, lines):
    path = write(tmp_path / "x.arff", "\n".join(lines))
    try:
        assert isinstance(load("tables", train=path, test=path), Dataset)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("name", "shape"), [("yeast", (1500, 917, 103, 14)), ("emotions", (391, 202, 72, 6))])
def test_mulan_sets_are_complete(shared_data, name, shape):
    folder = shared_data / "multilabel"
    found = load(
        "tables",
        train=folder / f"{name}-train.arff",
        test=folder / f"{name}-test.arff",
        labels_file=folder / f"{name}.xml",
    )
    assert (len(found.x_train), len(found.x_test), found.x_train.shape[1], len(found.classes)) == shape
    assert found.y_train.shape == (shape[0], shape[3])
    assert (found.y_train.sum(axis=1) > 0).all()
    if name == "yeast":
        assert remarks(found)[0].startswith("unbalanced classes: 1128 training samples of 'Class12', 21 of")
