"""Every form of label files: the labels of every photo, which photo a name means, and what is
refused since it could be read in two ways.

Oracles: one truth in the exports of four labelling tools; small files whose labels are written
beside them by hand.
"""

import json
import re
import unicodedata

import pytest
from conftest import coco_document

from datasets import label_files
from runtime import photo_names

# Four photos, as the tools' own exports have them. In Label Studio's there are besides two people's
# labels of sub/e.jpg, a skipped annotation (of c d.jpg), and a photo nobody has looked at (h.jpg).
CLASSES = ["cat", "dog", "fire hydrant"]
SHOWN = {"b.jpg": {"cat", "dog"}, "c d.jpg": {"fire hydrant"}, "f.jpg": set()}
SHOWN["sub/e.jpg"] = {"dog", "fire hydrant"}


def task(image, *choices, cancelled=False):
    results = [[{"type": "choices", "value": {"choices": c}}] if c else [] for c in choices]
    marks = [{"id": 1, "result": result, "was_cancelled": cancelled} for result in results]
    return {"id": 1, "annotations": marks, "drafts": [], "data": {"image": image}, "meta": {}}


TASKS = [
    task("/data/upload/1/77aa00bb-b.jpg", ["cat", "dog"]),
    task("/data/local-files/?d=photos/c%20d.jpg", ["fire hydrant"]),
    task("/data/local-files/?d=photos/sub/e.jpg", ["dog", "fire hydrant"], ["dog"]),
    task("/data/upload/1/0c0c0c0c-c_d.jpg", ["cat"], cancelled=True),
    task("s3://bucket/f.jpg", []),
    task("https://example.com/h.jpg"),
]
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>7</id><name>mytask</name><labels>
  <label><name>cat</name><type>tag</type></label><label><name>dog</name><type>tag</type></label>
  <label><name>fire hydrant</name><type>tag</type></label></labels></task></meta>
<image id="1" name="b.jpg" width="64" height="48">
  <tag label="cat" source="manual"></tag><tag label="dog" source="manual"></tag></image>
<image id="2" name="c d.jpg"><tag label="fire hydrant" source="manual"></tag></image>
<image id="3" name="sub/e.jpg" width="64" height="48">
  <tag label="dog" source="manual"></tag><tag label="fire hydrant" source="manual"></tag></image>
<image id="4" name="f.jpg" width="64" height="48"></image></annotations>"""
MARKS = [(1, 1), (1, 2), (2, 3), (4, 2), (4, 3)]
COCO = {  # datumaro's "coco_labels"
    "categories": [{"id": i, "name": c, "supercategory": ""} for i, c in enumerate(CLASSES, 1)],
    "images": [{"id": i, "file_name": name, "license": 0} for i, name in enumerate(SHOWN, 1)],
    "annotations": [{"id": 10 * i + j, "image_id": i, "category_id": j} for i, j in MARKS],
}
EXPORTS = {
    "label-studio.json": json.dumps(TASKS, indent=1),
    "cvat.xml": CVAT,
    "datumaro.json": json.dumps(COCO),
    "fiftyone.csv": "file,labels\nb.jpg,cat; dog\nc d.jpg,fire hydrant\n"
    "sub/e.jpg,dog; fire hydrant\nf.jpg,\n",
}


@pytest.fixture
def read(tmp_path):
    """read(content of a label file, photos in the folder): photo -> its labels, and the classes. A
    photo that is missing has a question mark in front."""

    def read_labels(content, photos):
        folder = tmp_path / "photos"
        for photo in photos:
            (folder / photo).parent.mkdir(parents=True, exist_ok=True)
            (folder / photo).touch()
        (tmp_path / "labels").write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )
        split = label_files.read_labels(tmp_path / "labels", folder)
        shown = {}
        for path, row in zip(split.paths, split.targets, strict=True):
            name = path.removeprefix(f"{folder}/")
            known = name if name in photos else f"?{name}"
            shown[known] = {label for label, one in zip(split.classes, row, strict=True) if one}
        return shown, split.classes

    return read_labels


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", EXPORTS)
def test_every_tools_export_names_the_same_photos_and_labels(read, name, encoding):
    content = EXPORTS[name].replace('encoding="utf-8"', "").encode(encoding)
    assert read(content, [*SHOWN]) == (SHOWN, CLASSES)


# CSV

TAGS = 'file,labels\na.jpg,"cat; fire hydrant"\nsub/b.jpg,dog\nc.jpg,\na.jpg, dog \n'
COLUMNS = "image,fire hydrant,cat,dog\na.jpg,1,1,1\nsub/b.jpg,0,,1\nc.jpg,0,0,0\n"


@pytest.mark.parametrize(
    ("text", "classes"),
    [  # by name, or in the header's order
        (TAGS, CLASSES),
        (COLUMNS, ["fire hydrant", "cat", "dog"]),
        (COLUMNS.replace(",", ";"), ["fire hydrant", "cat", "dog"]),
        (COLUMNS.replace("1", "x").replace("0", ""), ["fire hydrant", "cat", "dog"]),
        (COLUMNS.replace("1", "True").replace("0", "False"), ["fire hydrant", "cat", "dog"]),
        (COLUMNS.replace("0", "nan").replace("1", "1.0"), ["fire hydrant", "cat", "dog"]),
        ("a.jpg;cat, fire hydrant, dog\nsub/b.jpg;dog\nc.jpg;\n", CLASSES),
        ("a.jpg\tcat|fire hydrant|dog\nsub/b.jpg\tdog\nc.jpg\t\n", CLASSES),
        ("x,y\n/my/a.jpg,cat|fire hydrant|dog\nC:\\my\\sub\\b.jpg,dog\nc.jpg,\n", CLASSES),
        (f"sep=,\n{TAGS}", CLASSES),
        (f"\n{TAGS}".replace("\n", "\r\n"), CLASSES),
        (TAGS.replace(',"', ', "').replace('"\n', '" \n'), CLASSES),  # blanks around quotes
        (TAGS.replace("c.jpg,", "c.jpg,,"), CLASSES),
        (TAGS.replace("c.jpg,", "c.jpg,None"), CLASSES),
        (TAGS.replace("; fire hydrant", "; NaN; fire hydrant"), CLASSES),
        (TAGS.replace("cat; fire hydrant", "['cat', 'fire hydrant']"), CLASSES),
        (TAGS.replace("cat; fire hydrant", '[""cat"", ""fire hydrant""]'), CLASSES),
        (TAGS.replace("cat; fire hydrant", "['cat' 'fire hydrant']"), CLASSES),  # NumPy's
        (TAGS.replace("cat; fire hydrant", "[np.str_('cat'), np.str_('fire hydrant')]"), CLASSES),
        (TAGS.replace("cat; fire hydrant", "{'fire hydrant', 'cat'}").replace("c.jpg,", "c.jpg,[]"),
         CLASSES),
        ("labels,file\n" + "cat|fire hydrant|dog,a.jpg\ndog,sub/b.jpg\n,c.jpg\n", CLASSES),
        ("PK,file,labels\n" + "7,a.jpg,cat\n8,a.jpg,fire hydrant;dog\n9,sub/b.jpg,dog\n3,c.jpg,\n",
         CLASSES),
    ],
)  # fmt: skip
def test_a_csv_by_hand_in_every_form(read, text, classes):
    shown = {"a.jpg": set(CLASSES), "sub/b.jpg": {"dog"}, "c.jpg": set()}
    for content in (text, "\ufeff" + text, text.encode("utf-16")):
        assert read(content, [*shown]) == (shown, classes)


ABC = ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # the labels of a.jpg, b.jpg, c.jpg
        ("file,class\na.jpg,0\nb.jpg,1\nc.jpg,0\n", "0 1 0"),
        ("a.jpg,2\nb.jpg,1\nc.jpg,0\n", "2 1 0"),
        ("file,class id\na.jpg,1.0\nb.jpg,0.0\nc.jpg,\n", "1 0 -"),
        ("file,classes\na.jpg,0;1\nb.jpg,1\nc.jpg,\n", "0+1 1 -"),
        ("Id,Target\na,16 0\nb,7\nc,7 16\n", "16+0 7 7+16"),  # Kaggle's: no suffixes
        ("file,labels\na.jpg,\"[1, 0]\"\nb.jpg,[1]\nc.jpg,[]\n", "1+0 1 -"),
        ("image_name,tags\na,haze primary\nb,clear primary\nc,primary\n",
         "haze+primary clear+primary primary"),
        ("a,cat\nb,dog\nc,cat\n", "cat dog cat"),
        ("file,cat\na.jpg,True\nb.jpg,False\nc.jpg,nan\n", "cat - -"),
        ("file,cat\na.jpg,x\nb.jpg,\nc.jpg,\n", "cat - -"),
        ("file,cat,dog\na.jpg,1.00,0.00\nb.jpg,1.,0.\nc.jpg,.00,1.000e+00\n", "cat cat dog"),
        ("file,cat,dog\na.jpg,1.000000,0.000000\nb.jpg,-0.0,+1\nc.jpg,0,0\n", "cat dog -"),
        ("file,class\na.jpg,1.00\nb.jpg,0.\nc.jpg,0.0e+00\n", "1 0 0"),
        ("file,label\na.jpg,-1\nb.jpg,1\nc.jpg,-1.0\n", "-1 1 -1"),
        ("file,code\na.jpg,01\nb.jpg,02\nc.jpg,10\n", "01 02 10"),
        ("file,labels\na.jpg,'cat'\nb.jpg,\"'cat', 'dog'\"\nc.jpg,kids' toy\n",
         "cat cat+dog kids'_toy"),
        ("file,labels\na.jpg,(small) cat\nb.jpg,(1)\nc.jpg,\"('cat',)\"\n", "(small)_cat (1) cat"),
        ('file,labels\na.jpg,"[""\\u00e9"", null]"\nb.jpg,e\u0301\nc.jpg,set()\n', "é é -"),
        ('file,labels\na.jpg,"sofa, couch"\nb.jpg,cat;dog\nc.jpg,cat\n', "sofa,_couch cat+dog cat"),
        ("file,labels\na.jpg,hot dog\na.jpg,dog\nb.jpg,dog\nc.jpg,\n", "hot_dog+dog dog -"),
        ("file,class\na.jpg,[1]\nb.jpg,[0]\nc.jpg,[1]\n", "1 0 1"),
        ("label,file\n3,a.jpg\n7,b.jpg\n5,c.jpg\n", "3 7 5"),
        ("file;class\na.jpg;3,7\nb.jpg;1,4\nc.jpg;\n", "3+7 1+4 -"),
        ("id,file,label\n7,a.jpg,cat\n7,a.jpg,dog\n9,b.jpg,dog\n4,c.jpg,\n", "cat+dog dog -"),
        (",file,cat,dog\n0,a.jpg,1,0\n1,b.jpg,0,1\n2,c.jpg,0,0\n", "cat dog -"),
        ("file,cat,dog,bird\na.jpg,yes,no,\nb.jpg,Y,x,\nc.jpg,0,1.0,\n", "cat cat+dog dog"),
    ],
)  # fmt: skip
def test_a_csv_that_can_be_read_in_one_way_only_is_read(read, text, expected):
    labels = [{x.replace("_", " ") for x in each.split("+")} - {"-"} for each in expected.split()]
    assert read(text, ABC)[0] == dict(zip(ABC, labels, strict=True))


def test_class_numbers_that_are_names_of_photos_too(read):
    shown, _ = read("id,label\n0,1\n1,0\n2,0\n", ["0.jpg", "1.jpg", "2.jpg"])
    assert shown == {"0.jpg": {"1"}, "1.jpg": {"0"}, "2.jpg": {"0"}}


def test_a_missing_photo_does_not_make_class_numbers_the_names(read):
    photos = [f"{i}.png" for i in range(12) if i != 5]
    shown, _ = read("id,label\n" + "".join(f"{i},{i % 3}\n" for i in range(12)), photos)
    assert shown == {(f"{i}.png" if i != 5 else "?5"): {str(i % 3)} for i in range(12)}


def test_a_first_row_that_names_a_file_of_the_folder_is_no_header(read):
    photos = ["a.CR2", "b.jpg", "c.jpg"]
    shown, _ = read("a.CR2,cow\nb.jpg,dog\nc.jpg,cat\n", photos)
    assert shown == {"a.CR2": {"cow"}, "b.jpg": {"dog"}, "c.jpg": {"cat"}}


def test_a_photo_without_suffix_that_is_missing_is_no_header(read):
    assert read("gone,cat\nb,dog\nc,cat\n", ABC)[0] == {
        "?gone": {"cat"},
        "b.jpg": {"dog"},
        "c.jpg": {"cat"},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # the labels of a.jpg, b.jpg, c.jpg
        ("a,cat\nb.jpg,dog\nc.jpg,cow\n", "cat dog cow"),  # a photo of that stem is there
        ("cat,a\ndog,b.jpg\ncow,c.jpg\n", "cat dog cow"),
        ("my/a,cat\nb,dog\nc.jpg,cow\n", "cat dog cow"),
        ("file,cat\na.jpg,cat\nb.jpg,dog\nc.jpg,\n", "cat dog -"),  # a label is called cat
        ("Image_Name,cat\na,cat\nb,dog\nc,\n", "cat dog -"),
        ("cat,file name\ncat,a.jpg\ndog,b.jpg\n,c.jpg\n", "cat dog -"),
        ("x,y\na.jpg,cat\nb.jpg,dog\nc.jpg,\n", "cat dog -"),
    ],
)
def test_a_first_row_is_a_header_or_a_photo_and_is_never_lost(read, text, expected):
    labels = [{label} - {"-"} for label in expected.split()]
    assert read(text, ABC)[0] == dict(zip(ABC, labels, strict=True))


def test_a_first_row_that_may_be_a_header_or_a_photo_is_refused(read):
    photos = ["image.jpg", "b.jpg"]
    for text in ("image,cat\nb.jpg,dog\n", "image,cat\nb.jpg,cat\n", "image,cat\nb,dog\n"):
        with pytest.raises(ValueError, match="row 1, column 1 is 'image'; it may be the header or"):
            read(text, photos)
    for text in ("image,cat\nb.jpg,dog\nimage.jpg,cow\n", "image,label\nb.jpg,dog\n"):
        assert read(text, photos)[0]["b.jpg"] == {"dog"}
    assert read("image.jpg,cat\nb.jpg,dog\n", photos)[0]["image.jpg"] == {"cat"}
    with pytest.raises(ValueError, match="would both be the photo a"):
        read("a,cat\na.jpg,dog\nb.jpg,dog\n", ABC)


WIDE = "file," + ",".join(f"label {j}" for j in range(200)) + "\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [  # the cell in doubt, and what is expected
        ("a.jpg,1,0\nb.jpg,0,1\n", "row 1, column 2 is '1'; it may be a tick or the number of"),
        ("a.jpg,true\nb.jpg,false\n", "row 1, column 2 is 'true'; it may be a tick"),
        ("file,cat\na.jpg,0\nb.jpg,1\n", "row 2, column 2 (cat) is '0'; it may be two classes"),
        ("file,cat\na.jpg,0.00\nb.jpg,1.00\n", "row 2, column 2 (cat) is '0.00'; it may be two"),
        ("file,cat\na.jpg,1.\nb.jpg,0.\n", "row 2, column 2 (cat) is '1.'; it may be two classes"),
        ("file,cat\na.jpg,1e0\nb.jpg,0e0\n", "row 2, column 2 (cat) is '1e0'; it may be two class"),
        ("file,cat\na.jpg,0.000000\nb.jpg,1.000000\n", "is '0.000000'; it may be two classes"),
        ("a.jpg,0.00\nb.jpg,1.00\n", "row 1, column 2 is '0.00'; it may be a tick or"),
        ("file,cat\na.jpg,1\nb.jpg,-1\n", "row 3, column 2 (cat) is '-1'; for ticks write 1 and 0"),
        ("file,cat\na.jpg,-1.0\nb.jpg,0.0\n", "(cat) is '-1.0'; for ticks write 1 and 0"),
        ("a.jpg,1\nb.jpg,-1\n", "row 2, column 2 is '-1'; for ticks write 1 and 0"),
        ('file,tags\na.jpg,"[1, -1]"\nb.jpg,"[-1, 1]"\n', "'[1, -1]'; this may be a row of ticks"),
        ('file,tags\na.jpg,"[1., 0.]"\nb.jpg,"[0., 1.]"\n', "'[1., 0.]'; this may be a row of t"),
        ("file,label\na.jpg,yes\nb.jpg,no\n", "row 2, column 2 (label) is 'yes'; it may be a tick"),
        ("file,cat,dog\na.jpg,1,WAHR\n", "row 2, column 3 (dog) is 'WAHR'; expected the photo and"),
        ("file,labels,by\na.jpg,cat,me\n", "row 2, column 2 (labels) is 'cat'; expected the photo"),
        ("file,cat,dog\na.jpg,1.0,-1.0\n", "row 2, column 3 (dog) is '-1.0'; expected"),
        ("a.jpg,cat,me\nb.jpg,dog,me\n", "row 1, column 2 is 'cat'; expected the photo and one co"),
        (WIDE + "a.jpg" + ",1" * 199 + ",maybe\n", "row 2, column 201 (label 199) is 'maybe'; exp"),
        ("file,tags\na.jpg,haze day\nb.jpg,day\n", "'haze day'; one label or several?"),
        ('file,tags\na.jpg,"[1, 0]"\nb.jpg,"[0, 1]"\n', "'[1, 0]'; this may be a row of ticks"),
        ('file,tags\na.jpg,"[2, 0, 0]"\nb.jpg,[1]\n', "'[2, 0, 0]'; this may be a row of ticks"),
        ('file,tags\na.jpg,"[cat, dog]"\n', "'[cat, dog]'; of lists only those like"),
        ('file,tags\na.jpg,"[{""x"": ""cat""}]"\n', "; of lists only those like"),
        ("file,tags\na.jpg,\"['cat', 'dog'\"\n", "; of lists only those like"),
        ("file,tags\na.jpg,\"array(['cat', 'dog'])\"\n", "; of lists only those like"),
        ('file,tags\na.jpg,"cat, dog"\nb.jpg,cat;cow\nc.jpg,dog\n', "'cat, dog' may be 2 labels"),
        ("file,price\na.jpg,1.5\n", "'1.5'; this is not the number of a class"),
        ("file,thumb,tags\na.jpg,b.jpg,cat\n", "columns 1 and 2 both name photos, in row 2 'a"),
        ("file,tags\na.jpg,cat\n,dog\n", "row 3, column 1 (file) is ''; expected the name of a ph"),
        ("file,,cat\na.jpg,0,1\n", "row 1 has no label in column 2"),
        ("file,cat,cat\na.jpg,0,1\n", "label 'cat' is there twice"),
        ("file,tags\na.jpg,\nb.jpg,nan\n", "has no labels, all cells for them are empty"),
        ("file,tags\n", "no column names photos"),
        ("a.jpg\nb.jpg\n", "has no labels, no column but that of the photos"),
        ('file,tags\na.jpg,"cat\nb.jpg,dog\n', "line 3: unexpected end of data; check the quotes"),
        ('file,tags\na.jpg,"cat"x\n', "line 2: ',' expected after '\"'; check the quotes"),
        ("file,tags\na.jpg," + "x" * 5_000_000, "line 2: field larger than field limit"),
        ("a.jpg,cat,dog\nb.jpg,cat\n", "row 2 has 2 cells (['b.jpg', 'cat']), expected 3"),
        ("file,tags\na.jpg," + "x" * 2000, "expected a text, not blank, of at most 1,000 charact"),
        ("a.jpg,dog\nab\0c.jpg,cat\n", "photo[1] is 'ab\\x00c.jpg', expected the path of a photo"),
        ("file,tags\na.jpg,1 0 0\nb.jpg,0 1 0\nc.jpg,0 0 1\n", "'1 0 0'; this may be a row of t"),
        ("file;class\na.jpg;1,0\nb.jpg;2,0\n", "'1,0'; it may be a number with a decimal comma"),
        ("file,tags\na.jpg,scab rust\nb.jpg,rust scab\nb.jpg,rust scab\nc.jpg,rust\n",
         "'scab rust'; one label or several?"),
        ("file,tags\na.jpg,\u732b\uff0c\u72d7\nb.jpg,\u72d7\nc.jpg,\u732b\n", "may be 2 labels"),
        ("file,cat\na.jpg,WAHR\nb.jpg,FALSCH\n", "'WAHR'; for ticks write 1 and 0"),
        ("file,cat\na.jpg,si\nb.jpg,no\n", "'si'; for ticks write 1 and 0"),
        (b"file,tags\na.jpg,t\xe9\n", "line 2: it is not in UTF-8"),
    ],
)  # fmt: skip
def test_a_csv_that_can_be_read_in_two_ways_is_refused_by_the_cell_in_doubt(read, text, words):
    with pytest.raises(ValueError, match="/labels") as error:
        read(text, ABC)
    assert words in str(error.value)
    assert len(str(error.value)) < 500


NO_LABEL = "which names no label; write the label in the header, or remove the column"


@pytest.mark.parametrize(
    ("header", "named"),
    [  # of columns of ticks, and the one that is named
        ("label,is_valid", "label"),
        ("target,fold", "target"),
        ("id,split,label", "id"),
        ("train,test", "train"),
        ("cat,is_valid", "is_valid"),
        ("cat,dog,isTrain", "isTrain"),
        ("cat,image_id", "image_id"),
        ("cat,label,Class Label", "Class Label"),
    ],
)
def test_columns_of_ticks_that_are_no_labels_are_refused(read, header, named):
    width = header.count(",") + 1
    text = f"file,{header}\na.jpg{',1' * width}\nb.jpg{',0' * width}\n"
    with pytest.raises(ValueError, match=rf"row 1 has ticks under '{named}', {NO_LABEL}"):
        read(text, ABC)


@pytest.mark.parametrize(
    "header",
    ["train,bus", "is_cat,is_valid", "class 0,class 1", "label_1,label_2", "is_cat,is_train",
     "photo,drawing", "scratch,fold", "bottle,cap,label", "passport,id", "is_valid_2,cat"],
)  # fmt: skip
def test_columns_of_ticks_that_may_be_labels_are_read(read, header):
    width = header.count(",") + 1
    assert read(f"file,{header}\na.jpg{',1' * width}\n", ABC)[1] == header.split(",")


@pytest.mark.parametrize(
    ("header", "cells"),
    [  # true and false as Excel writes them, and other ticks
        ("cat", "PRAWDA FAŁSZ"),
        ("cat", "WAAR ONWAAR"),
        ("cat", "ИСТИНА ЛОЖЬ"),
        ("cat", "VRAI FAUX"),
        ("cat", "VERO FALSO"),
        ("cat", "VERDADERO FALSO"),
        ("cat", "VERDADEIRO FALSO"),
        ("cat", "DOĞRU YANLIŞ"),
        ("cat", "SAND FALSK"),
        ("cat", "是 否"),
        ("cat", "○ ×"),
        ("label", "WAHR FALSCH"),
        ("label", "да нет"),
    ],
)
def test_ticks_of_other_languages_are_refused(read, header, cells):
    one, other = cells.split()
    with pytest.raises(ValueError, match=rf"row 2, column 2 .* is '{one}'; for ticks write 1 and"):
        read(f"file,{header}\na.jpg,{one}\nb.jpg,{other}\n", ABC)
    lists = f'file,{header}\na.jpg,["{one}"]\nb.jpg,["{other}"]\n'
    assert read(lists, ABC)[0] == {"a.jpg": {one}, "b.jpg": {other}}


def test_sand_alone_is_a_label(read):
    assert read("file,ground\na.jpg,sand\nb.jpg,sand\n", ABC)[1] == ["sand"]


@pytest.mark.parametrize(
    ("header", "cells"),
    [("letter", "t f n"), ("letter", "t f"), ("First_Letter", "x"), ("cat", "t f n"),
     ("cat", "x n"), ("label", "t f n")],
)  # fmt: skip
def test_letters_that_may_be_labels_are_no_ticks(read, header, cells):
    cells = cells.split()
    pairs = list(zip(ABC, cells, strict=False))
    text = f"file,{header}\n" + "".join(f"{name},{cell}\n" for name, cell in pairs)
    with pytest.raises(ValueError, match="; it may be a tick or a label; write 1 and 0 for ticks"):
        read(text, ABC)
    lists = f"file,{header}\n" + "".join(f'{name},["{cell}"]\n' for name, cell in pairs)
    assert read(lists, ABC)[0] == {name: {cell} for name, cell in pairs}


@pytest.mark.parametrize("cells", ["t f", "Y n", "x", "yes y no", "T 0"])
def test_letters_of_one_way_to_write_ticks_are_ticks(read, cells):
    pairs = zip(ABC, cells.split(), strict=False)
    text = "file,cat\n" + "".join(f"{name},{cell}\n" for name, cell in pairs)
    assert read(text, ABC)[1] == ["cat"]


@pytest.mark.parametrize(
    "text", ["file,is_valid\na.jpg,True\nb.jpg,False\n", "file,fold\na.jpg,0\nb.jpg,1\n"]
)
def test_the_only_column_of_ticks_is_named_after_a_label(read, text):
    with pytest.raises(ValueError, match="but the column is not named after a label; write the"):
        read(text, ABC)


# Labels that hold several, or parts of quotes, or what nobody sees

FOUR = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def csv_of(*cells):
    """A CSV of tags for a.jpg, b.jpg and so on, each cell in quotes."""
    quoted = (cell.replace('"', '""') for cell in cells)
    rows = [f'{name},"{cell}"\n' for name, cell in zip(FOUR, quoted, strict=False)]
    return "file,labels\n" + "".join(rows)


@pytest.mark.parametrize(
    ("cells", "row", "words"),
    [  # the cells of four photos, the first row in doubt, and what it may be
        ("猫、犬 犬、鳥 猫、鳥 猫", 2, "'猫、犬' may be 2 labels; separate labels by ; alone: "
         'write "猫; 犬" for several, ["猫、犬"] for one'),
        ("猫、犬 牛 馬 猫", 2, "'猫、犬' may be 2 labels"),
        ("猫；狗 狗；鸟 猫；鸟 猫", 2, "'猫；狗' may be 2 labels"),
        ("قط،كلب كلب،طائر قط", 2, "'قط،كلب' may be 2 labels"),
        ("قط؛كلب كلب؛طائر قط", 2, "'قط؛كلب' may be 2 labels"),
        ("猫，狗，鸟 狗，鸟 猫", 2, "'猫，狗，鸟' may be 3 labels"),
        ("猫｜狗 狗｜鸟 猫", 2, "'猫｜狗' may be 2 labels"),
        ("cat\tdog dog\tcow cow", 2, "'cat\\tdog' may be 2 labels"),
        ("cow cat/dog dog cat", 3, "'cat/dog' may be 2 labels"),
        ("cat+dog+cow dog cat cow", 2, "'cat+dog+cow' may be 3 labels"),
        ("cat／dog dog cat", 2, "'cat／dog' may be 2 labels"),
        ("cow #cat#dog #dog #cat", 3, "'#cat#dog' may be 2 labels"),
        ("#cat#dog #dog#cow #cow", 2, "'#cat#dog' may be 2 labels"),
        ("cat;dog cat，cow cow", 3, "'cat，cow' may be 2 labels"),  # two keyboards
        ("cat|dog cat/dog dog", 3, 'write "cat|dog" for several, ["cat/dog"] for one'),
        ("cat,dog cat、cow dog", 3, 'write "cat, cow" for several, ["cat、cow"] for one'),
    ],
)  # fmt: skip
def test_a_label_that_may_be_several_is_refused_by_its_cell(read, cells, row, words):
    with pytest.raises(ValueError, match=rf"row {row}, column 2 \(labels\) is ") as error:
        read(csv_of(*cells.split(" ")), FOUR)
    assert words in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "names",
    [  # the labels of four photos
        "AC/DC, C++, C, C#",
        "indoor/day, indoor/night, outdoor/day, outdoor/night",
        "animal, animal/bat, sport/bat, sport",
        "O+, A+, AB+, A",
        "rock & roll, rock, salt & pepper, roll",
        "テディ・ベア, 犬, テディ, 熊猫",
        "t-shirt, teddy bear, children's toys, bear",
        "#1, #2, no. 1#2, 1/2",
        "50/50, 50, “, ‘",
        '6" pipe, 猫、犬, 馬, قط',
    ],
)
def test_names_of_one_label_are_read_as_they_are(read, names):
    names = names.split(", ")
    expected = {photo: {name} for photo, name in zip(FOUR, names, strict=True)}
    assert read(csv_of(*names), FOUR)[0] == expected


def test_a_list_says_that_its_items_are_one_label_each(read):
    names = ["cat/dog", "猫、犬", "#cat#dog", "x，cat"]
    cells = [json.dumps([name, "cat"], ensure_ascii=False) for name in names]
    shown, _ = read(csv_of(*cells), FOUR)
    assert shown == {photo: {name, "cat"} for photo, name in zip(FOUR, names, strict=True)}


def test_commas_of_other_keyboards_are_in_names_where_semicolons_separate_tags(read):
    shown, _ = read(csv_of("椅子，办公; 猫", "椅子，餐厅", "قط، صغير; 猫"), FOUR[:3])
    assert shown["a.jpg"] == {"椅子，办公", "猫"}
    assert shown["c.jpg"] == {"قط، صغير", "猫"}


@pytest.mark.parametrize(
    ("cells", "row"),
    [  # the cells of some photos, and the first row with a quote that has no partner in its label
        ("“cat; dog”|cow", 2),
        ("cow|„cat; dog“", 3),
        ("”cat; dog”|cow", 2),  # Swedish
        ("«cat; dog»|cow", 2),
        ("»cat; dog«|cow", 2),
        ("« cat, dog »|cow", 2),
        ("‘cat; dog’|cow", 2),
        ("`cat; dog`|cow", 2),
        ("‘children’s toys; dog’|cow", 2),
        ("‚cat; dog‘|cow", 2),
        ("'cat; dog'|cow", 2),
        ('"cat; dog"|cow', 2),
        ("「猫; 犬」|cow", 2),
        ("cow; a “red; cat” toy", 2),
        ("“cat”; “dog|cow", 2),
        ("“cat|cow", 2),
        ("“route 6; pipe”|cow", 2),
    ],
)
def test_quotes_that_are_torn_by_the_separator_are_refused(read, cells, row):
    with pytest.raises(ValueError, match=rf"row {row}, column 2 .* and its partner are not in"):
        read(csv_of(*cells.split("|")), FOUR)


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("“cat”; «dog»; „cow“; ‘hen’; » ape «; ‚elk‘", "cat dog cow hen ape elk"),
        ("children’s_toys; kids’; ’90s; rock_’n’_roll", "children’s_toys kids’ ’90s rock_’n’_roll"),
        ("‘children’s_toys’; ‘ukulele; kids", "children’s_toys ‘ukulele kids"),
        ('6”_pipe; 6"_pipe; 7_”; 5’; a_“red”_cat', '6”_pipe 6"_pipe 7_” 5’ a_“red”_cat'),
        ("“a”_or_“b”; animal_»_bat", "“a”_or_“b” animal_»_bat"),
        ("「猫」; 《犬》; kids'; 'cat'", "「猫」 《犬》 kids' cat"),
        ("['“cat', '”']", "“cat ”"),  # a list says what its items are
    ],
)
def test_quotes_around_a_label_are_no_part_of_it_and_others_are(read, cell, labels):
    expected = {label.replace("_", " ") for label in labels.split()}
    assert read(csv_of(cell.replace("_", " ")), FOUR[:1])[0] == {"a.jpg": expected}


def test_quotes_in_the_header_of_ticks_are_as_in_tags(read):
    assert read("file,“cat”,kids’\na.jpg,1,1\n", ABC)[1] == ["cat", "kids’"]
    with pytest.raises(
        ValueError, match="row 1 has the label '“cat'; a quote in it and its partner are not"
    ):
        read("file,“cat,dog”\na.jpg,1,1\n", ABC)


@pytest.mark.parametrize(
    "unseen",
    [
        "\u200b",
        "\u200c",
        "\u200d",
        "\u200e",
        "\u200f",
        "\u2060",
        "\ufeff",
        "\u00ad",
        "\u202c \u00a0",
    ],
)
def test_characters_that_nobody_sees_at_the_ends_of_a_label_are_no_part_of_it(read, unseen):
    cells = [f"cat{unseen}", f"{unseen}dog; cat {unseen}", "dog", f"['{unseen}cat']"]
    expected = dict(zip(FOUR, [{"cat"}, {"cat", "dog"}, {"dog"}, {"cat"}], strict=True))
    assert read(csv_of(*cells), FOUR) == (expected, ["cat", "dog"])
    assert read(csv_of("cat", unseen), FOUR[:2])[0]["b.jpg"] == set()
    ticks = f"file,{unseen}cat,dog{unseen}\na.jpg,1{unseen},0\n"
    assert read(ticks, FOUR) == ({"a.jpg": {"cat"}}, ["cat", "dog"])


@pytest.mark.parametrize(
    "name",
    [
        "\u0645\u06cc\u200c\u0631\u0648\u0645",  # Persian
        "\U0001f469\u200d\U0001f4bb",  # a woman and a laptop are one emoji
        "\u2764\ufe0f",  # a red heart
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # England's flag
        "\u0d05\u0d35\u0d28\u0d4d\u200d",  # Malayalam: he; without the joiner it is: to him
        "co\u00adop",
    ],
)
def test_characters_that_nobody_sees_but_which_have_a_meaning_stay(read, name):
    assert read(csv_of(name), ABC)[1] == [name]


# Names of photos

NFD = unicodedata.normalize("NFD", "\ud55c\uae00/caf\u00e9.jpg")  # as a Mac writes them
NFC = unicodedata.normalize("NFC", NFD)
UPLOAD = "/data/upload/3/3f2a9c1b-"  # Label Studio's
BY = "1 of 1 photos are not at the exact path that it names but were found: 1 by "


@pytest.mark.parametrize(
    ("name", "photos", "expected", "told"),
    [
        ("a.jpg", ["a.jpg", "x/a.jpg"], "a.jpg", ""),
        ("x//./a.jpg", ["a.jpg", "x/a.jpg"], "x/a.jpg", ""),
        ("y/../a.jpg", ["a.jpg", "y/a.jpg"], "a.jpg", ""),
        (NFC, [NFD], NFD, ""),
        (NFD, [NFC], NFC, ""),
        (NFD, [NFD, NFC], NFD, ""),
        ("a:b.jpg", ["a:b.jpg", "b.jpg"], "a:b.jpg", ""),  # as Linux allows
        ("a\\b.jpg", ["a\\b.jpg", "b.jpg"], "a\\b.jpg", ""),
        ("x\\a.jpg", ["a.jpg", "x/a.jpg"], "x/a.jpg", ""),
        ("photos/x/a.jpg", ["a.jpg", "x/a.jpg"], "x/a.jpg", ""),  # the folder itself is photos
        ("my/set/x/a.jpg", ["a.jpg", "x/a.jpg"], "x/a.jpg", BY + "the end of the path"),
        ("x/a.jpg", ["a.jpg", "z/x/a.jpg"], "z/x/a.jpg", BY + "the end of the path"),
        ("my/a.jpg", ["a.jpg", "x/a.jpg"], "a.jpg", BY + "the file name alone (my/a.jpg is a.jpg)"),
        ("a.jpg", ["x/a.jpg"], "x/a.jpg", BY + "the file name alone"),
        ("/abs/x/a.jpg", ["x/a.jpg"], "x/a.jpg", BY + "the end of the path"),
        ("C:\\x\\a.jpg", ["x/a.jpg"], "x/a.jpg", BY + "the end of the path"),
        ("..\\..\\a.jpg", ["a.jpg"], "a.jpg", BY + "the file name alone"),
        ("https://h/x/a%20b.jpg?y=1#z", ["a b.jpg"], "a b.jpg", BY + "the file name alone"),
        ("s3://h/50%25 #1.jpg", ["50%25 #1.jpg"], "50%25 #1.jpg", BY + "the file name alone"),
        ("v1.5", ["v1.5.jpg", "v1.jpg"], "v1.5.jpg", BY + "a name without a suffix"),
        ("v1", ["v1.jpg", "x/v1.png"], "v1.jpg", BY + "a name without a suffix"),
        ("images/train/a.jpg", ["train/a.jpg", "val/a.jpg"], "train/a.jpg", BY + "the end"),
        (UPLOAD + "a_b.jpg", ["a b.jpg"], "a b.jpg", BY + "the name that Label Studio gives"),
        (UPLOAD + "a_1.jpg", ["a (1).jpg", "a 2.jpg"], "a (1).jpg", BY + "the name that"),
        (UPLOAD + "a.jpg", ["a.jpg", f"x/{UPLOAD[-9:]}a.jpg"], f"x/{UPLOAD[-9:]}a.jpg", BY),
        # These are told later, with all that are missing.
        ("gone.jpg", ["a.jpg"], "?gone.jpg", ""),
        ("/etc/a/x.jpg", ["a.jpg"], "?etc/a/x.jpg", ""),
        ("../../../x.jpg", ["a.jpg"], "?x.jpg", ""),
        ("x/a.jpg", ["y/a.jpg"], "?x/a.jpg", "1 (x/a.jpg is not taken to be y/a.jpg)"),
        ("z/x/a.jpg", ["y/x/a.jpg"], "?z/x/a.jpg", "is not taken to be y/x/a.jpg"),
        ("A.JPG", ["a.jpg"], "?A.JPG", "1 (A.JPG is not taken to be a.jpg)"),
        ("train/a.jpg", ["val/a.jpg"], "?train/a.jpg", "is not taken to be val/a.jpg"),
        ("/d/train2014/x/a.jpg", ["val2014/x/a.jpg"], "?d/train2014/x/a.jpg", "is not taken"),
        ("a+b.jpg", ["ab.jpg"], "?a+b.jpg", ""),
        ("a_1.jpg", ["a (1).jpg"], "?a_1.jpg", ""),  # loose for Label Studio alone
        ("dog.jpg", ["dog\U0001f436.jpg"], "?dog.jpg", ""),
        ("\u0915\u093f.jpg", ["\u0915\u093e.jpg"], "?\u0915\u093f.jpg", ""),  # ki, ka: marks
        (UPLOAD + "\u0915.jpg", ["\u0915\u093e.jpg"], f"?{UPLOAD[1:]}\u0915.jpg", ""),
        ("3f2a9c1b-a.jpg", ["a.jpg"], "?3f2a9c1b-a.jpg", ""),
    ],
)
def test_the_photo_that_a_name_means_is_found_and_told_or_is_missing(
    read, capsys, name, photos, expected, told
):
    csv = f'file,labels\n"{name}",cat\n'
    assert [*read(csv, photos)[0]] == [expected]
    printed = capsys.readouterr().out
    assert told in printed
    assert bool(told) == bool(printed)


@pytest.mark.parametrize("part", ["train", "training", "Train2017"])
def test_photos_of_one_part_are_never_those_of_another_whose_folder_is_chosen(tmp_path, part):
    for folder in ("val", "train"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").touch()
    found = [
        photo_names.PhotoFolder(tmp_path / folder).find(f"images/{part}/a.jpg")[0]
        for folder in ("val", "train")
    ]
    assert found == ["", "a.jpg"]


@pytest.mark.parametrize(
    ("names", "photos", "words"),
    [
        (["x/a.jpg"], ["y/x/a.jpg", "z/x/a.jpg"], "x/a.jpg may be y/x/a.jpg or z/x/a.jpg; write"),
        (["a.jpg"], ["y/a.jpg", "z/a.jpg"], "a.jpg may be y/a.jpg or z/a.jpg; write"),
        (["a"], ["a.jpg", "a.png"], "a may be a.jpg or a.png; write"),
        ([f"{UPLOAD}a_b.jpg"], ["a b.jpg", "y/a_b.jpg"], "a_b.jpg may be a b.jpg or y/a_b.jpg"),
        (["x/a.jpg", "y/a.jpg"], ["a.jpg"], "x/a.jpg and y/a.jpg would both be the photo a.jpg"),
        (["a.jpg", "y/a.jpg"], ["a.jpg"], "a.jpg and y/a.jpg would both be the photo a.jpg"),
    ],
)
def test_names_that_may_be_several_photos_and_photos_of_several_names_are_refused(
    read, names, photos, words
):
    csv = "file,labels\n" + "".join(f"{name},cat\n" for name in names)
    with pytest.raises(ValueError, match="/labels: ") as error:
        read(csv, photos)
    assert words in str(error.value)


def test_several_paths_to_one_file_are_one_photo(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    (tmp_path / "y/a.jpg").touch()
    (tmp_path / "x/a.jpg").symlink_to(tmp_path / "y/a.jpg")
    assert photo_names.PhotoFolder(tmp_path).find("a.jpg")[0] == "x/a.jpg"


# A photo that is named twice


def as_coco(rows):
    """Images of their own for every row, as datumaro merges files."""
    labels = sorted({label for _, labels in rows for label in labels})
    images = [{"id": i, "file_name": name} for i, (name, _) in enumerate(rows)]
    marks = [(i, labels.index(x)) for i, (_, shown) in enumerate(rows) for x in shown]
    marks = [{"image_id": i, "category_id": j} for i, j in marks]
    names = [{"id": j, "name": label} for j, label in enumerate(labels)]
    return json.dumps({"images": images, "annotations": marks, "categories": names})


def as_cvat(rows):
    tags = [(name, "".join(f'<tag label="{x}"/>' for x in labels)) for name, labels in rows]
    images = "".join(f'<image name="{name}">{text}</image>' for name, text in tags)
    return f"<annotations>{images}</annotations>"


def as_csv(rows):
    return "file,labels\n" + "".join(f"{name},{'; '.join(labels)}\n" for name, labels in rows)


def as_label_studio(rows):
    return json.dumps([task(f"/data/upload/1/{i}f2a9c1b-{n}", x) for i, (n, x) in enumerate(rows)])


@pytest.mark.parametrize("write", [as_coco, as_cvat, as_csv, as_label_studio])
def test_in_every_form_a_photo_that_is_named_twice_has_the_labels_of_both(read, capsys, write):
    rows = [("a.jpg", ["cat"]), ("b.jpg", ["dog"]), ("a.jpg", ["dog"]), ("a.jpg", [])]
    assert read(write(rows), ABC)[0] == {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}}
    told = "2 of 4 rows name a photo that an earlier row names; their labels are united"
    assert told in capsys.readouterr().out


# Label Studio, CVAT, COCO


def labelled(data, *results):
    return json.dumps([{"data": data, "annotations": [{"result": list(results)}]}])


def choice(label, **more):
    return {"type": "choices", "value": {"choices": [label]}} | more


def way(*words, **more):
    return {"type": "taxonomy", "value": {"taxonomy": [list(words)]}} | more


def box(label, **more):
    return {"type": "rectanglelabels", "value": {"rectanglelabels": [label]}} | more


@pytest.mark.parametrize(
    ("data", "results", "photo"),
    [
        ({"thumb": "b.jpg", "image": "a.jpg"}, [choice("cat")], "a.jpg"),
        ({"thumb": "b.jpg", "image": "a.jpg"}, [choice("cat", to_name="img")], "a.jpg"),
        ({"thumb": "b.jpg", "photo": "a.jpg"}, [choice("cat", to_name="photo")], "a.jpg"),
        ({"image": "b.jpg", "photo": "a.jpg"}, [choice("cat", to_name="photo")], "a.jpg"),
        ({"images": ["a.jpg"], "text": "b c"}, [choice("cat")], "a.jpg"),
        ({"text": "b", "image": "https://h/a.jpg?x=b.png"}, [choice("cat")], "a.jpg"),
        ({"a": "a.jpg", "b": "b.jpg"}, [choice("cat")], None),
        ({"thumb": "b.jpg", "photo": "a.jpg"}, [choice("cat", to_name="img")], None),
        (
            {"image": "a.jpg", "b": "b.jpg"},
            [choice("x", to_name="i"), choice("y", to_name="j")],
            None,
        ),
        ({"images": ["a.jpg", "b.jpg"]}, [choice("cat")], None),
        ({"id": 7}, [choice("cat")], None),
    ],
)
def test_label_studios_labels_are_of_the_photo_that_they_name_or_are_refused(
    read, data, results, photo
):
    if photo:
        assert [*read(labelled(data, *results), ABC)[0]] == [photo]
        return
    with pytest.raises(ValueError, match=r"\[0\]\.data has \d photos that its labels may"):
        read(labelled(data, *results), ABC)


def test_label_studios_taxonomies_are_labels_and_what_is_left_out_is_named(read, capsys):
    ways = [["animal", "bat"], ["sport", "bat"], ["animal", "cat"], ["animal"]]
    results = [
        {"type": "taxonomy", "value": {"taxonomy": ways}},
        {"id": "r", "type": "rectangle", "value": {"x": 1}},  # its label is the next one
        {"id": "r", "type": "rectanglelabels", "value": {"rectanglelabels": ["dog"]}},
        {"id": "s", "type": "rating", "value": {"rating": 3}},
        {"type": "textarea", "value": {"text": ["a dog"]}},
    ]
    tasks = json.loads(labelled({"image": "a.jpg"}, *results)) + TASKS[3:4]
    tasks += [{"data": {"image": "b.jpg"}, "annotations": [], "predictions": [{}, {}]}]
    shown, _ = read(json.dumps(tasks), ABC)
    assert shown == {"a.jpg": {"animal / bat", "sport / bat", "cat", "animal", "dog"}}
    expected = "photos without an annotation: 2, predictions: 2, rating without labels: 1, "
    expected += "textarea without labels: 1, skipped annotations: 1"
    assert f"left out: {expected}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([choice("Yes", from_name="people"), choice("No", from_name="blurred")],
         {"people / Yes", "blurred / No"}),
        ([choice("Yes", from_name="people"), choice("sea", from_name="place")], {"Yes", "sea"}),
        ([way("animal", "bat", from_name="what"), way("bat", from_name="toy")],
         {"what / animal / bat", "toy / bat"}),
        ([way("a", "bat", from_name="p"), way("b", "bat", from_name="p")], {"a / bat", "b / bat"}),
        ([way("a", "bat", from_name="p"), way("a", "bat", from_name="q")], {"p / bat", "q / bat"}),
        ([choice("cat", from_name="main"), way("pet", "cat", from_name="all")],
         {"main / cat", "all / pet / cat"}),
        ([box("cat", from_name="box"), box("cat", from_name="polygon")], {"cat"}),
        ([box("cat", from_name="box"), choice("cat", from_name="main")], {"cat"}),
    ],
)  # fmt: skip
def test_label_studios_answer_to_several_questions_is_a_label_for_each(read, results, expected):
    no = [choice("No", from_name="people"), choice("Yes", from_name="blurred")]
    tasks = json.loads(labelled({"image": "a.jpg"}, *results))
    if "people / Yes" in expected:  # the words are those of the whole file
        tasks += json.loads(labelled({"image": "b.jpg"}, *no))
    assert read(json.dumps(tasks), ABC)[0]["a.jpg"] == expected


def test_cvats_skeletons_are_labels_their_points_and_attributes_are_named_as_left_out(read, capsys):
    labels = """<label><name>person</name></label><label><name>car</name><attributes>
      <attribute><name>colour</name></attribute></attributes></label>
      <label><name>1</name><parent>person</parent></label><label><name>horse</name></label>
      <label><name>1</name><parent>horse</parent></label>"""
    shapes = """<skeleton label="person"><points label="1"/><points label="2"/></skeleton>
      <box label="car"><attribute name="colour">red</attribute></box>"""
    xml = f"<annotations><meta><job><labels>{labels}</labels></job></meta>"
    xml += f'<image name="a.jpg">{shapes}</image></annotations>'
    assert read(xml, ABC) == ({"a.jpg": {"person", "car"}}, ["person", "car", "horse"])
    expected = "left out, since they are no labels of photos: points of skeletons: 2, attributes: 1"
    assert expected in capsys.readouterr().out


def in_subsets(*names):
    """CVAT's export of a project: subset/name=label for every image."""
    images = ""
    for each in names:
        subset, name, label = re.split("[/=]", each, maxsplit=2)
        attribute = f' subset="{subset}"' if subset else ""
        images += f'<image name="{name}"{attribute}><tag label="{label}"/></image>'
    return f"<annotations>{images}</annotations>"


TWO_SUBSETS = in_subsets("Train/a.jpg=cat", "Train/b.jpg=cat", "Validation/a.jpg=dog")


def test_cvats_photos_of_one_name_in_two_subsets_are_two_photos(read):
    photos = ["Train/a.jpg", "Train/b.jpg", "Validation/a.jpg"]
    shown = dict(zip(photos, [{"cat"}, {"cat"}, {"dog"}], strict=True))
    assert read(TWO_SUBSETS, photos)[0] == shown


def test_cvats_photos_of_a_subset_that_is_not_there_are_missing(read, tmp_path):
    folder = tmp_path / "photos/Train"
    folder.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (folder / name).touch()
    (tmp_path / "labels").write_text(TWO_SUBSETS)
    split = label_files.read_labels(tmp_path / "labels", folder)
    assert split.paths == [f"{folder}/{name}" for name in ("a.jpg", "b.jpg", "Validation/a.jpg")]
    assert split.targets.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_cvats_photos_that_lie_in_no_subset_are_refused_where_subsets_share_a_name(read):
    with pytest.raises(ValueError, match="would both be the photo a"):
        read(TWO_SUBSETS, ABC)


@pytest.mark.parametrize(
    "names",
    [
        ["Train/a.jpg=cat", "Validation/b.jpg=dog"],  # of two tasks
        ["Train/a.jpg=cat", "Train/b.jpg=dog"],
        ["/a.jpg=cat", "/b.jpg=dog"],
    ],
)
def test_cvats_names_stay_as_they_are_where_no_two_subsets_share_one(read, capsys, names):
    assert read(in_subsets(*names), ABC)[0] == {"a.jpg": {"cat"}, "b.jpg": {"dog"}}
    assert not capsys.readouterr().out  # found by the exact path


def changed_coco(**changes):
    document = coco_document()  # images 40, 3, 7; categories 9 zebra, 2 apple
    for key, change in changes.items():
        document[key] = [change(item) for item in document[key]]
    return document


def test_coco_ids_may_be_text_and_keep_their_order(read):
    def as_text(item):
        return {key: str(v) if key.endswith("id") else v for key, v in item.items()}

    plain = read(json.dumps(coco_document()), ["3.jpg", "7.jpg", "40.jpg"])
    keys = "images", "categories", "annotations"
    for some in (keys, keys[:1], keys[2:]):  # all, or some of the lists
        document = changed_coco(**dict.fromkeys(some, as_text))
        assert read(json.dumps(document), ["3.jpg", "7.jpg", "40.jpg"]) == plain
    document["categories"] = [{"id": "10", "name": "apple"}, {"id": "9", "name": "zebra"}]
    document["annotations"] = [{"image_id": "7", "category_id": "10"}]
    shown, classes = read(json.dumps(document), ["3.jpg", "7.jpg", "40.jpg"])
    assert (classes, shown["7.jpg"]) == (["zebra", "apple"], {"apple"})  # 9 before 10


@pytest.mark.parametrize(
    ("key", "item", "words"),
    [
        ("images", {"id": "7", "file_name": "b.jpg"}, "image id 7 is there twice, as '7.jpg' and"),
        (
            "categories",
            {"id": "02", "name": "pear"},
            "category id 2 is there twice, as 'apple' and",
        ),
        ("categories", {"id": 5, "name": "x" * 5_000_000}, "of at most 1,000 characters"),
    ],
)
def test_coco_ids_that_are_not_clear_and_endless_labels_are_refused(read, key, item, words):
    document = coco_document()
    document[key].append(item)
    with pytest.raises(ValueError, match="/labels: ") as error:
        read(json.dumps(document), ABC)
    assert words in str(error.value)
    assert len(str(error.value)) < 500


def test_an_image_and_a_category_that_are_there_twice_alike_are_one(read):
    document = coco_document()
    document["images"].append({"id": 7, "file_name": "7.jpg", "license": 1})
    document["categories"].append({"id": 9, "name": "zebra"})
    assert read(json.dumps(document), ["7.jpg"])[0]["7.jpg"] == {"zebra"}


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("..\\..\\label-studio\\media\\upload\\4\\cb0618f6-a_b.jpg", {}),  # 1.16
        ("images\\cb0618f6-a_b.jpg", {"info": {"contributor": "Label Studio"}}),  # 1.23
    ],
)
def test_label_studios_coco_names_its_uploads(read, name, info):
    document = json.loads(as_coco([(name, ["cat"])])) | info
    assert read(json.dumps(document), ["a b.jpg"])[0] == {"a b.jpg": {"cat"}}


def test_names_that_differ_in_the_spelling_of_an_accent_are_one_label(read):
    composed, apart = "caf\u00e9", "cafe\u0301"
    for write in (as_coco, as_cvat, as_csv, as_label_studio):
        shown, classes = read(write([("a.jpg", [composed]), ("b.jpg", [apart])]), ABC)
        assert (classes, shown["b.jpg"]) == ([composed], {composed}), write


# Other forms

MIN = '[\n{\n  "image": "\\/data\\/upload\\/1\\/a.jpg",\n  "tags": "cat",\n  "annotation_id": 1\n}]'
CHOICES = """"annotation_id","annotator","created_at","id","image","lead_time","tags","updated_at"
1,"1","2024-05-01T09:00:10.123456Z",1,"/data/upload/1/3f2a9c1b-a.jpg",3.5,"cat",""
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            json.dumps(COCO | {"annotations": []}),
            "4 images and no annotation, since tags",
        ),  # CVAT's
        ("0 0.512 0.431 0.250 0.310\n", "looks like one of YOLO's files"),
        ("path: ../mine\ntrain: images/train\nnc: 3\n", "looks like YOLO's list"),
        (MIN, "looks like Label Studio's CSV or JSON-MIN"),
        (CHOICES, "looks like Label Studio's CSV or JSON-MIN"),
        ("image," + CHOICES.replace(",", "\t"), "looks like Label Studio's CSV or JSON-MIN"),
        ('filepath,tags,labels\na.jpg,,"classifications,_cls"\n', "looks like FiftyOne's CSV"),
        ('{"file_name": "a.jpg"}\n{"file_name": "b.jpg"}\n', "looks like JSON Lines"),
        ("PK\x03\x04\x14", "a zip or a spreadsheet of Excel"),
        (b"\x1f\x8b\x08\x00", "a gzip file; unpack it"),
        ("", "is empty"),
        ('<?xml version="1.0" encoding="utf-9"?><annotations/>', "not valid XML (unknown encod"),
        ("<annotation><filename>a.jpg</filename></annotation>", "no images; of XML only CVAT's"),
        (
            '<annotations><image><tag label="x"/></image></annotations>',
            "photo[0] is None, expected",
        ),
    ],
)
def test_labels_of_other_forms_are_one_sentence(read, text, words):
    with pytest.raises(ValueError, match="/labels") as error:
        read(text, ABC)
    assert words in str(error.value)
