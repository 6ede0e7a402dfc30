"""Films: layouts as published, real label tables, broken files, resume, DICOM."""
import gzip
import json
import os
import platform
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lazyseg import data, film
from lazyseg.core import LazysegError
from lazyseg.film import read_mask
from lazyseg.data import (add_truth, coco_runs, draw_shapes, get_films, get_source, make_view, nih_table, read_film, resize, set_split,
                          split_patients, template_region, unpaired_loaders)

CXR = Path(os.environ.get('LAZYSEG_CXR') or Path(__file__).resolve().parents[2]/'shared'/'cxr')
real = pytest.mark.skipif(not (CXR/'index.csv').is_file(), reason='no folder of real films (LAZYSEG_CXR)')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('LAZYSEG_CACHE', str(tmp_path/'cache'))


def picture(path, seed=0, height=40, width=32, kind='PNG', lungs=False):
    "A small film on disk; with `lungs`, a mask of two lungs instead."
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = rng.integers(20, 235, (height, width)).astype(np.uint8)
    if lungs:
        image[:] = 0
        image[height//5:-height//5, width//8:width//2 - 2] = image[height//5:-height//5, width//2 + 2:-width//8] = 255
    Image.fromarray(image).save(path, kind)
    return image


def table_of(folder, n=12, **more):
    for i in range(n):
        picture(folder/f'{i}.png', i)
        picture(folder/'lungs'/f'{i}.png', lungs=True)
    return pd.DataFrame(dict(path=[f'{i}.png' for i in range(n)], patient=[f'p{i}' for i in range(n)],
                             labels=['No Finding', 'Pneumonia']*(n//2), lungs=[f'lungs/{i}.png' for i in range(n)], **more))


# -- sources, in the layouts as published ---------------------------------------------------------------------------------

@pytest.mark.parametrize('wrapped', ['', 'chest_xray', 'chest_xray/chest_xray'])
def test_kaggle_pneumonia_layout(tmp_path, wrapped):
    root, names = tmp_path/wrapped, dict(NORMAL=['IM-0{:03}-0001', 'NORMAL2-IM-1{:03}-0001'], PNEUMONIA=['person{}_bacteria_1', 'person{}_virus_2'])
    for s, part in enumerate(('train', 'val', 'test')):
        for kind, forms in names.items():
            for i in range(6): picture(root/part/kind/(forms[i % 2].format(100*s + i) + '.jpeg'), i, kind='JPEG')
    (tmp_path/'__MACOSX'/'train'/'NORMAL').mkdir(parents=True)
    (root/'train'/'NORMAL'/'.DS_Store').write_text('x')
    source = get_source('pneumonia', tmp_path)
    assert len(source) == 36 and source.table.diseased.sum() == 18
    assert set(source.table.labels) == {'No Finding', 'Pneumonia|bacteria', 'Pneumonia|virus'}
    assert {'IM-0000', 'IM-1001', 'person0'} <= set(source.table.patient)
    assert 'CC BY 4.0' in source.credit and len(get_films(source, 16)) == 36
    assert source.table.groupby('split').size().to_dict() == dict(train=12, valid=12, test=12) # clean here, so it is kept
    picture(root/'test'/'PNEUMONIA'/'person0_virus_9.jpeg', 3, kind='JPEG') # a patient of the training part
    with pytest.raises(LazysegError, match='1 of 36 patients, with 2 films'): get_source('pneumonia', tmp_path, split='official')
    with pytest.warns(UserWarning, match='split anew'): again = get_source('pneumonia', tmp_path)
    assert again.table.groupby('patient').split.nunique().max() == 1


def nih_rows(n): return [(f'{i//2:08}_{i % 2:03}.png', 'Hernia|Effusion' if i % 4 == 0 else 'No Finding', i//2) for i in range(n)]


@pytest.mark.parametrize('sample', [True, False])
def test_nih_layouts(tmp_path, sample):
    rows = nih_rows(40)
    if sample:
        frame = pd.DataFrame(rows, columns=['Image Index', 'Finding Labels', 'Patient ID']).assign(**{'Patient Age': '060Y', 'Patient Gender': 'M', 'View Position': 'PA'})
        (tmp_path/'sample').mkdir()
        frame.to_csv(tmp_path/'sample'/'sample_labels.csv', index=False)
        for i, (name, *_) in enumerate(rows): picture(tmp_path/'sample'/'images'/name, i)
    else:
        frame = pd.DataFrame(rows, columns=['Image Index', 'Finding Labels', 'Patient ID']).assign(**{'Patient Age': 60, 'Patient Gender': 'F', 'View Position': 'AP', 'Unnamed: 11': ''})
        frame.to_csv(tmp_path/'Data_Entry_2017.csv', index=False)
        for i, (name, *_) in enumerate(rows): picture(tmp_path/f'images_{i % 3 + 1:03}'/'images'/name, i)
        (tmp_path/'train_val_list.txt').write_text('\n'.join(r[0] for r in rows[:28]))
        (tmp_path/'test_list.txt').write_text('\n'.join(r[0] for r in rows[28:]))
        (tmp_path/'BBox_List_2017.csv').write_text('Image Index,Finding Label,Bbox [x,y,w,h],,,\n' f'{rows[0][0]},Effusion,256,256,512,256\n')
    source = get_source('nih', tmp_path, 'Hernia', **({} if sample else dict(split='official')))
    assert len(source) == 40 and source.table.diseased.sum() == 10 and source.table.age.eq(60).all()
    assert len(get_films(source, 16)) == 40
    if not sample:
        assert set(source.table.split[source.table.path.str.contains(rows[30][0])]) == {'test'} and (source.table.split == 'valid').any()
        boxed = get_source('nih', tmp_path, 'Effusion', truth=('nih', tmp_path/'BBox_List_2017.csv'))
        films = get_films(boxed, 40, aspect=.8) # the size of the files
        assert films.truth.sum() == 10*16 and films.table.has_truth[films.table.diseased].sum() == 1
    (next(tmp_path.rglob(rows[1][0]))).unlink()
    with pytest.warns(UserWarning, match='1 of 40 films'): assert len(get_source('nih', tmp_path, 'Hernia')) == 39
    with pytest.raises(LazysegError, match='1 of 40 films'): get_source('nih', tmp_path, 'Hernia', missing='stop')


def test_masks_and_copies_beside_nih_films_are_not_taken_for_them(tmp_path):
    rows = nih_rows(40)
    pd.DataFrame(rows, columns=['Image Index', 'Finding Labels', 'Patient ID']).to_csv(tmp_path/'Data_Entry_2017.csv', index=False)
    for i, (name, *_) in enumerate(rows): picture(tmp_path/'images_001'/'images'/name, i), picture(tmp_path/'LungMasks'/name, lungs=True), picture(tmp_path/'images_001'/'224'/name, i, 20, 20)
    assert get_source('nih', tmp_path, 'Hernia').table.path.str.startswith('images_001/images/').all()
    (tmp_path/'images_001'/'images').rename(tmp_path/'images_001'/'films')
    with pytest.raises(LazysegError, match="which of them is the film can't be told"): get_source('nih', tmp_path, 'Hernia')
    for name, *_ in rows: (tmp_path/'again').mkdir(exist_ok=True), (tmp_path/'again'/name).write_bytes((tmp_path/'images_001'/'films'/name).read_bytes())
    import shutil
    shutil.rmtree(tmp_path/'LungMasks'), shutil.rmtree(tmp_path/'images_001'/'224')
    assert len(get_source('nih', tmp_path, 'Hernia')) == 40 # the same bytes twice, as Kaggle's sample has them


def pack(mask):
    "COCO's packing, written the other way round, for the test alone."
    flat, out = mask.T.ravel().astype(int), []
    edges = np.flatnonzero(np.diff(np.r_[0, flat])); counts = np.diff(np.r_[0, edges, flat.size]).tolist()
    for i, c in enumerate(counts):
        x = int(c - counts[i-2]) if i > 2 else int(c)
        while True:
            bits = x & 31; x >>= 5
            more = (x != -1) if bits & 16 else (x != 0)
            out.append(chr((bits | (32 if more else 0)) + 48))
            if not more: break
    return ''.join(out)


def test_coco_packing_there_and_back():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.kron(rng.random((8, 6)) < .4, np.ones((int(rng.integers(1, 40)), int(rng.integers(1, 40))))) > 0
        mask[0, 0] = False
        assert (draw_shapes([dict(runs=coco_runs(pack(mask)), size=list(mask.shape))], *mask.shape) == mask).all()
    assert coco_runs('PVWX6') == [] # CheXlocalize writes an empty mask of 2320 x 2828 so


def test_outlined_sources(tmp_path):
    for i in range(6): picture(tmp_path/'a'/f'f{i}.png', i, 64, 64)
    half = dict(x=0, y=0, width=512, height=1024)
    rsna = pd.DataFrame([dict(patientId=f'f{i}', **(half if i < 3 else dict.fromkeys(half, '')), Target=int(i < 3)) for i in range(6)] +
                        [dict(patientId='f0', x=512, y=0, width=512, height=512, Target=1)])
    rsna.to_csv(tmp_path/'a'/'stage_2_train_labels.csv', index=False)
    with pytest.raises(LazysegError, match="no pneumonia"): get_source('rsna', tmp_path/'a') # without the detailed classes nobody is known to be normal
    assert len(get_source('rsna', tmp_path/'a', healthy='No Pneumonia')) == 6
    pd.DataFrame([(f'f{i}', ('Lung Opacity', 'Normal', 'No Lung Opacity / Not Normal')[i//3 + (i == 5)]) for i in range(6)], columns=['patientId', 'class']
                 ).to_csv(tmp_path/'a'/'stage_2_detailed_class_info.csv', index=False)
    source = get_source('rsna', tmp_path/'a')
    assert source.table.diseased.tolist() == [True]*3 + [False]*2
    films = get_films(source, 16)
    assert [round(t.mean(), 2) for t in films.truth] == [.75, .5, .5, 0, 0]

    vindr = pd.DataFrame([('f0', 'Nodule/Mass', 'R1', 0, 0, 32, 64), ('f0', 'Nodule/Mass', 'R2', 0, 0, 16, 64), ('f1', 'No finding', 'R1', '', '', '', ''),
                          ('f2', 'Cardiomegaly', 'R1', 1, 1, 9, 9)], columns=['image_id', 'class_name', 'rad_id', 'x_min', 'y_min', 'x_max', 'y_max'])
    vindr.to_csv(tmp_path/'a'/'train.csv', index=False)
    with pytest.raises(LazysegError, match='None of|carries the label'): get_source('vindr', tmp_path/'a', 'hernia')
    assert get_films(get_source('vindr', tmp_path/'a', 'Nodule/Mass'), 16).truth[0].mean() == .5

    runs = pd.DataFrame([('f0', f'0 {1024*512}'), ('f1', '-1'), ('f2', ' -1')], columns=['ImageId', ' EncodedPixels'])
    runs.to_csv(tmp_path/'a'/'train-rle.csv', index=False)
    siim = get_films(get_source('siim', tmp_path/'a', 'pneumothorax'), 16)
    assert siim.truth[0, :, :8].all() and not siim.truth[0, :, 8:].any() and len(siim) == 3

    det = [dict(file_name='f0.png', syms=['Emphysema', 'Nodule'], boxes=[[0, 0, 512, 1024]]*2, polygons=[[[0, 0], [512, 0], [512, 1024], [0, 1024]], [[0, 0], [9, 0], [0, 9]]]),
           dict(file_name='f1.png', syms=[], boxes=[], polygons=[])]
    with gzip.open(tmp_path/'a'/'ChestX_Det_train.json.gz', 'wt') as f: json.dump(det, f)
    assert get_films(get_source('chestxdet', tmp_path/'a', 'emphysema'), 16).truth.sum() == 16*8


def test_chexlocalize_layout(tmp_path):
    "The two folders that Stanford AIMI hands out, side by side. Every film's entry names all ten findings; a lateral film has none."
    findings = ['Enlarged Cardiomediastinum', 'Cardiomegaly', 'Lung Lesion', 'Airspace Opacity', 'Edema', 'Consolidation', 'Atelectasis',
                'Pneumothorax', 'Pleural Effusion', 'Support Devices']
    empty, half = np.zeros((60, 50), bool), np.zeros((60, 50), bool)
    half[:, :25] = True; half[0, 0] = False
    marked = {0: [], 1: ['Edema'], 2: ['Support Devices']} # film -> findings with a mask
    truth = {}
    for i, names in marked.items():
        for view in ('view1_frontal', 'view2_lateral'): picture(tmp_path/'CheXpert'/'val'/f'patient{64541 + i}'/'study1'/f'{view}.jpg', i, 60, 50, 'JPEG')
        truth[f'patient{64541 + i}_study1_view1_frontal'] = {f: dict(size=[60, 50], counts=pack(half if f in names else empty)) for f in findings}
    (tmp_path/'CheXlocalize').mkdir()
    (tmp_path/'CheXlocalize'/'gt_segmentations_val.json').write_text(json.dumps(truth))
    (tmp_path/'CheXlocalize'/'gt_annotations_val.json').write_text('{}') # the same as lines: not read
    (tmp_path/'CheXpert'/'val_labels.csv').write_text('Path,Edema\nval/patient64541/study1/view1_frontal.jpg,1.0\n')
    source = get_source('chexlocalize', tmp_path, 'edema')
    assert source.table.patient.tolist() == ['patient64541', 'patient64542'] and source.table.diseased.tolist() == [False, True]
    assert source.table.path.str.endswith('frontal.jpg').all() and abs(get_films(source, 16).truth[1].mean() - .5) < .02
    devices = get_source('chexlocalize', tmp_path, 'support devices', healthy='without Support Devices')
    assert devices.table.diseased.tolist() == [False, False, True]


@pytest.mark.parametrize('where', ['PhysioNet', 'Kaggle'])
def test_vindr_layout(tmp_path, where):
    "15,000 DICOM films named by a hash; three readers a film; corners in the film's own pixels, nothing where nothing was found."
    names = [f'{i:032x}' for i in range(4)]
    for i, name in enumerate(names):
        (tmp_path/'train').mkdir(exist_ok=True)
        dicom(tmp_path/'train'/f'{name}.dicom', np.random.default_rng(i).integers(0, 4096, (80, 64)))
    nothing = [('No finding', 14, f'R{k}', '', '', '', '') for k in (8, 9, 10)]
    found = [('Consolidation', 4, 'R8', 0., 0., 32., 80.), ('Consolidation', 4, 'R9', 0., 40., 48., 80.), ('Pleural effusion', 10, 'R10', 1., 2., 9., 9.)]
    rows = [(name, *row) for name, read in zip(names, (found, nothing, nothing, found[2:])) for row in read]
    table = pd.DataFrame(rows, columns=['image_id', 'class_name', 'class_id', 'rad_id', 'x_min', 'y_min', 'x_max', 'y_max'])
    if where == 'PhysioNet': # annotations/annotations_train.csv, without class_id
        (tmp_path/'annotations').mkdir()
        table[['image_id', 'rad_id', 'class_name', 'x_min', 'y_min', 'x_max', 'y_max']].to_csv(tmp_path/'annotations'/'annotations_train.csv', index=False)
        table[['image_id', 'rad_id']].drop_duplicates().assign(**{'No finding': 0}).to_csv(tmp_path/'annotations'/'image_labels_train.csv', index=False)
    else: table.to_csv(tmp_path/'train.csv', index=False)
    source = get_source('vindr', tmp_path, 'consolidation', split='patients')
    assert source.table.diseased.tolist() == [True, False, False] and source.table.labels[0] == 'Consolidation|Pleural effusion'
    films = get_films(source, 80, aspect=.8) # their own size
    assert films.truth[0].sum() == 32*80 + 16*40 and not films.truth[1:].any() # the union of two readers


def test_siim_layout(tmp_path):
    "dicom-images-train/STUDY/SERIES/IMAGE.dcm; the second column's name starts with a blank; two outlines on one film are two rows."
    ids = [f'1.2.276.0.7230010.3.1.4.8323329.{1000 + i}.1517875165.{878027 + i}' for i in range(3)]
    for i, name in enumerate(ids):
        study = tmp_path/'dicom-images-train'/name.replace('.1.4.', '.1.2.')/name.replace('.1.4.', '.1.3.')
        study.mkdir(parents=True)
        dicom(study/f'{name}.dcm', np.random.default_rng(i).integers(0, 4096, (64, 64)))
    left, right = f' 0 {1024*256} {1024*256} {1024*256}', f'{1024*1023 + 512} 512' # columns 0-255 and 512-767; the lower half of the last one
    (tmp_path/'train-rle.csv').write_text('ImageId, EncodedPixels\n' + ''.join(f'{i},{r}\n' for i, r in
                                          [(ids[0], left), (ids[0], right), (ids[1], ' -1'), (ids[2], '-1'), ('1.2.276.0.7230010.9', ' -1')]))
    with pytest.warns(UserWarning, match='1 of 4 films named'): source = get_source('siim', tmp_path, 'pneumothorax', split='patients')
    assert source.table.diseased.tolist() == [True, False, False]
    truth = get_films(source, 64).truth[0] > 0 # 16 columns of 1024 become one
    assert truth[:, :16].all() and truth[:, 32:48].all() and not truth[:, 16:32].any() and not truth[:, 48:].any()
    assert draw_shapes(source.table.shapes[0], 1024, 1024)[512:, -1].all() and not draw_shapes(source.table.shapes[0], 1024, 1024)[:512, -1].any()


def test_mask_folder_and_mask_of_another_size(tmp_path):
    table = table_of(tmp_path/'films')
    for i in range(1, 12, 2): picture(tmp_path/'masks'/f'{i}.png', lungs=True, height=80, width=64)
    source = get_source('table', table, root=tmp_path/'films', truth=('masks', tmp_path/'masks'))
    films = get_films(source, 16)
    assert films.table.has_truth.all() and films.truth[1].any() and (films.truth[1] == films.lungs[1]).mean() > .9
    with pytest.raises(LazysegError, match='No mask in'): add_truth(table, 'masks', tmp_path/'films'/'none', 'x')


# -- what users get wrong ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('change, words', [
    (lambda t: t.drop(columns='labels'), 'no column for .labels'),
    (lambda t: t.assign(patient=['', *t.patient[1:]]), '1 rows have no patient'),
    (lambda t: t.assign(path=['0.png']*len(t)), '11 films are listed twice'),
    (lambda t: t.assign(labels='Pneumonia'), "'no finding'"),
    (lambda t: t.assign(labels='No Finding'), "'pneumonia'"),
    (lambda t: t.assign(labels='Pneumonia|No Finding'), 'both'),
    (lambda t: t[:0], 'no rows'),
    (lambda t: t[:1], "'pneumonia'"),
])
def test_bad_tables_say_what_to_do(tmp_path, change, words):
    with pytest.raises(LazysegError, match=words): get_source('table', change(table_of(tmp_path)), root=tmp_path)


def test_bad_arguments(tmp_path):
    table = table_of(tmp_path)
    (tmp_path/'torn.json').write_text('[{"file_name": "a.png"}]')
    (tmp_path/'boxes.csv').write_text('Image Index,Finding Label,x,y,w,h\n0.png,Mass,1,2,3,4\n')
    for how, words in ((dict(where='labels ==='), "doesn't work on this table"), (dict(where="labels == 'x'"), 'leaves no film'), (dict(split='mine'), 'auto, official, patients'),
                       (dict(disease='pneumona'), "did you mean 'pneumonia'"), (dict(columns=dict(path='nope')), 'columns says'), (dict(valid=.6, test=.5), 'must leave films'),
                       (dict(truth=('rsna', tmp_path/'no.csv')), 'no truth file'), (dict(where='labels > 5'), "doesn't work on this table.*Its columns: path"),
                       (dict(truth=('chestxdet', tmp_path/'torn.json')), "torn.json is not chestxdet's truth file as published"),
                       (dict(truth=('nih', tmp_path/'boxes.csv')), "no 'pneumonia' on any of these 12 films. It knows: Mass")):
        with pytest.raises(LazysegError, match=words): get_source('table', table, root=tmp_path, **how)
    source = get_source('table', table, root=tmp_path)
    for how, words in ((dict(size=50), 'multiple of 8'), (dict(size=16, aspect=90.), 'not the shape'), (dict(size=16, view='lung'), 'film, crop, aligned, lungs'), (dict(size=16, bad='no'), 'stop, skip')):
        with pytest.raises(LazysegError, match=words): get_films(source, **how)
    with pytest.raises(LazysegError, match='no table'): get_source('table', tmp_path/'gone.csv')
    with pytest.raises(LazysegError, match='does not hold Kaggle.s Chest X-Ray Images'): get_source('pneumonia', tmp_path)
    with pytest.raises(LazysegError, match='takes no data'): get_source('phantom', tmp_path)
    with pytest.warns(UserWarning, match='patient of its own'): get_source('table', table.drop(columns='patient'), root=tmp_path)


@pytest.mark.parametrize('where', ["labels == '`' or @os.system('touch pwned') == '`'", "labels != '`' and path.to_csv('pwned') != '`'", """labels == '''a'b `''' or path.to_csv('pwned') == '''`'''""",
                                   "(labels != 'x' # `\n and path.to_csv('pwned') != 'x' # `\n)", "labels != r'\\' and path.to_csv('pwned') != '`' and labels != '`'", "`\u2028path.to_csv('pwned')\u2028`"])
def test_a_query_hides_nothing_between_backticks(tmp_path, monkeypatch, where):
    "Backticks that are part of strings hid what stands between them from the check, and it was run."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, 'system', lambda *a: pytest.fail('a command was run'))
    try: data.pick_rows(pd.DataFrame(dict(path=['a'], labels=['b'])), where)
    except LazysegError: pass
    assert not list(tmp_path.iterdir())


def test_backticks_name_columns_and_may_be_part_of_strings():
    table = pd.DataFrame({'path': list('abc'), 'Patient ID': ['1', '2', "it's `"]})
    picked = lambda where: ''.join(data.pick_rows(table, where).path)
    assert picked("`Patient ID` == '1'") == 'a' and picked('`Patient ID` == "it\'s `"') == 'c' and picked("`Patient ID` in ('1', '2') and path != '`'") == 'ab'
    with pytest.raises(LazysegError, match="no column 'Patient'.*Its columns: path, Patient ID"): picked("`Patient` == '1'")


def test_a_query_compares_numbers_as_numbers_and_text_as_text():
    "All that a CSV holds is text: `age > '50'` kept 7 and dropped 100, and `age > 50` ended in Python's words."
    table = pd.DataFrame(dict(path=list('abcdef'), age=['7', '9', '100', '051', '', '50.5'], patient=['906', '00000906', '3', '4', '5', '6'],
                              day=['2019-12-31', '2020-01-01', '2021-05-05', '', '2020-02-02', '2018-01-01'], stage=['1', 'II', '3', '', '5', '6']))
    picked = lambda where, table=table: ''.join(data.pick_rows(table, where).path)
    for where, rows in (('age > 50', 'cdf'), ("age > '50'", 'cdf'), ('50 < age', 'cdf'), ('8 < age <= 51', 'bdf'), ('age == 51', 'd'), ('age in (7, 51)', 'ad'), ('age != 7', 'bcdef'), ('age > -1', 'abcdf'), ('not age > 50', 'abe'),
                        ("patient == '906'", 'a'), ("patient in ('00000906', '4')", 'bd'), ('patient == 906', 'ab'), ("age == '51'", ''), ("age == ''", 'e'), ("day >= '2020'", 'bce'), ("day >= '2020-01-01' and day < '2021-01-01'", 'be'),
                        ('age > 50 and stage == "3"', 'c'), ('patient > age', 'ab'), ('index < 2', 'ab')):
        if rows: assert picked(where) == rows, where
        else:
            with pytest.raises(LazysegError, match='leaves no film'): picked(where)
    with pytest.raises(LazysegError, match="2 is compared with 'stage', where 'II' is written, which is no number"): picked('stage > 2')
    assert picked("age > 50", table.assign(age=[7, 9, 100, 51, np.nan, 50.5])) == 'cdf' # a DataFrame that holds numbers
    assert picked("age < 1", pd.DataFrame(dict(path=list('ab'), age=['006M', '060Y']))) == 'a' and (table.age == ['7', '9', '100', '051', '', '50.5']).all()


def test_a_query_may_use_the_names_of_the_table_and_of_the_house(tmp_path):
    table = table_of(tmp_path).rename(columns=dict(path='Image Index', labels='Finding Labels', patient='Patient ID')).assign(**{'View Position': ['PA', 'PA', 'AP']*4, 'Patient Age': ['9', '10', '100']*4})
    table.to_csv(tmp_path/'t.csv', index=False)
    for where in ("view == 'PA'", "`View Position` == 'PA'", "view == 'PA' and age < 50 and `Patient Age` >= 9"): assert len(get_source('table', tmp_path/'t.csv', where=where)) == 8
    other = table_of(tmp_path).assign(view='PA', lung_view='AP', split='train', dealt=['test', 'valid']*6)
    for where in ("view == 'PA'", "split == 'train'"): # the table's own name comes first, as it did
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); assert len(get_source('table', other, root=tmp_path, where=where, columns=dict(split='dealt', view='lung_view'), split='patients')) == 12



def a_folder(folder, names, lungs=False):
    for i, name in enumerate(names): picture(folder/name, i, lungs=lungs)
    return folder


def folder_patients(folder):
    "Patients of a folder, film by film, and what was said."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        table = get_source('folder', folder).table
    return dict(zip(table.path, table.patient)), ' '.join(str(o.message) for o in said)


def test_a_folder_in_a_folder_is_a_patient(tmp_path):
    "Forty patients of three films each, 1.png to 3.png, became three patients, all of them in several parts of the split."
    a_folder(tmp_path/'a', [f'{"diseased" if k % 2 else "healthy"}/pat{k}/{"study/"*(i > 1)}{i}.png' for k in range(40) for i in (1, 2, 3)] + ['diseased/pat0/9.png', 'healthy/other__9.png', 'healthy/pat2/eve__1.png', 'healthy/lone.png'])
    table = get_source('folder', tmp_path/'a').table
    assert table.patient.nunique() == 43 and table.groupby('patient').split.nunique().max() == 1
    patient, said = folder_patients(tmp_path/'a')
    assert said == '' and patient['healthy/pat2/study/2.png'] == 'pat2' and patient['diseased/pat0/9.png'] == patient['healthy/pat0/1.png'] == 'pat0'
    assert (patient['healthy/other__9.png'], patient['healthy/pat2/eve__1.png'], patient['healthy/lone.png']) == ('other', 'eve', 'lone')


def test_a_folder_round_all_films_is_no_patient(tmp_path):
    patient, said = folder_patients(a_folder(tmp_path/'a', ['healthy/images/x/1.png', 'healthy/images/x/2.png', 'diseased/more/3.png', 'diseased/more/4.png']))
    assert sorted(patient.values()) == list('1234') and 'All films of healthy/ lie in one folder inside it' in said and 'patient of its own' in said
    patient, said = folder_patients(a_folder(tmp_path/'b', ['healthy/p1/1.png', 'healthy/p2/2.png', 'diseased/p1/3.png', 'diseased/p1/4.png'])) # but he may have been healthy before
    assert list(patient.values()) == ['p1', 'p2', 'p1', 'p1'] and said == ''


def test_films_that_tell_no_patient_are_said_to(tmp_path):
    _, said = folder_patients(a_folder(tmp_path, ['healthy/1.png', 'healthy/2.png', 'diseased/3.png', 'diseased/4.png']))
    assert said.count('patient of its own') == 1
    picture(tmp_path/'healthy'/'eve__1.png')
    assert folder_patients(tmp_path)[1] == ''


def test_names_of_numbers_and_dots_are_whole(tmp_path):
    "Scanners name films 1.2.840.113619.2.5.10.0: without the last number, which is no ending, two patients are one, and no mask is found."
    names = [f'1.2.840.113619.2.5.{i}.{k}' for i in range(4) for k in (0, 1)]
    for i, name in enumerate(names):
        kind = ('healthy', 'diseased')[i % 2]
        picture(tmp_path/kind/'x.png', i), picture(tmp_path/'truth'/f'{name}.png', lungs=True)
        (tmp_path/kind/'x.png').unlink()
        dicom(tmp_path/kind/name, np.random.default_rng(i).integers(0, 4096, (40, 32)))
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); table = get_source('folder', tmp_path).table
    assert sorted(table.patient) == names and (table.truth == 'truth/' + table.patient + '.png').all()
    assert data.film_key(f'a/{names[0]}') == data.film_key(f'{names[0]}.dcm') == names[0]
    masks = add_truth(pd.DataFrame(dict(path=names)), 'masks', tmp_path/'truth', 'x')
    assert [Path(o).stem for o in masks.truth] == names



def domains(labels, *queries):
    "What choose_domains makes of labels: diseased or not, film by film; what is said; what is noted for the audit."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        table = data.choose_domains(pd.DataFrame(dict(labels=labels, row=range(len(labels)))), *queries)
    return dict(zip(table.row, table.diseased)), [str(o.message) for o in said], table


@pytest.mark.parametrize('sign', [', ', ',', ';', ' ; '])
def test_findings_joined_by_commas_or_semicolons(sign):
    "Of 60 with an infiltration 29 were diseased, and the others nobody; against healthy='without Infiltration' they were healthy."
    labels = [f'Effusion{sign}Infiltration', 'Infiltration', 'No Finding', f'Mass{sign}Effusion']*4
    for healthy, n in (('No Finding', 4), ('without Infiltration', 8)):
        found, said, table = domains(labels, 'Infiltration', healthy)
        assert sum(found.values()) == 8 and len(found) == 8 + n and [o for o in said if 'joined by' in o] and len(said) == 1
    assert data.label_sets(table.labels)[0] == {'effusion', 'infiltration'} and data.label_sets(table.labels)[-1] == {'mass', 'effusion'}


@pytest.mark.parametrize('labels, asked', [(['A|B', 'A, C', 'No Finding'], 'A'), (['A; B', 'A, C', 'No Finding'], 'A'), (['A, left', 'A', 'A, right', 'No Finding'], 'A, left|A')])
def test_findings_joined_who_knows_how(labels, asked):
    with pytest.raises(LazysegError, match="How findings are joined can't be told: there is 'a, .*by \\|"): domains(labels, asked)


def test_a_comma_may_be_part_of_a_label():
    for asked, n in (('A, left', 1), ('A, left|A, right', 2), ('B', 1)):
        found, said, _ = domains(['A, left', 'A, right', 'B', 'No Finding'], asked)
        assert sum(found.values()) == n and said == []


@pytest.mark.parametrize('odd, asked', [('Infiltrations', 'Infiltration'), ('Infiltrate', 'Infiltration'), ('Normal', 'No Finding'), ('no findings', 'No Finding')])
def test_films_left_out_for_a_label_written_otherwise(odd, asked):
    found, said, table = domains(['Infiltration', 'No Finding', odd, 'Mass', 'Mass|Edema', '']*3, 'Infiltration')
    assert len(found) == 6 and len(said) == 1 and f"If '{odd.lower()}' means '{asked.lower()}'" in said[0]
    assert said[0].startswith("12 of 18 films are neither 'Infiltration' nor 'No Finding' and are left out.") and 'mass (6), (none) (3), edema (3)' in said[0]
    assert ' films are left out: ' not in said[0] # which is how films that can't be read are told


def test_films_left_out_on_purpose_are_not_talked_about():
    "NIH's fourteen labels, RSNA's three: whoever asks for one of them wants no others."
    nih = 'Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax Consolidation Edema Emphysema Fibrosis Pleural_Thickening Hernia'.split()
    for asked in nih:
        found, said, table = domains([*nih, 'No Finding'], asked)
        assert len(found) == 2 and said == [] and table.attrs['left_out'].startswith('13 of 15 films')
    assert domains(['Pneumonia', 'No Pneumonia', 'No Finding'], 'Pneumonia')[1] == [] and domains(['Pneumonia', 'No Finding'], 'Pneumonia')[2].attrs['left_out'] == ''


def test_numbers_for_labels_and_names_for_columns_say_what_to_do(tmp_path):
    for labels, asked in ((['0', '1'], 'Edema'), ([0, 1], 'Edema'), (['0.0', '1.0'], 'Edema'), (['no', 'yes'], 'Edema'), (['0', 'Edema'], 'Edema')):
        with pytest.raises(LazysegError, match='--healthy'): domains(labels, asked)
    assert domains([0, 1], '1', '0')[0] == {0: False, 1: True}
    with pytest.raises(LazysegError, match=r"Call one of them labels, or say which it is: --columns labels=yours as an option, columns=\{'labels': 'your column'\} in Python"):
        get_source('table', table_of(tmp_path).rename(columns=dict(labels='dx')), root=tmp_path)



def test_a_film_listed_twice_under_two_spellings(tmp_path):
    table = table_of(tmp_path)
    for i, way in enumerate(('./0.png', 'lungs/../0.png', './/0.png', '.\\0.png')):
        with pytest.raises(LazysegError, match='1 films are listed twice, the first is .*0.png'): get_source('table', table.assign(path=[*table.path[:-1], way]), root=tmp_path)
    odd = table.assign(path='./' + table.path)
    assert (get_source('table', odd, root=tmp_path).table.path == odd.path).all() # and written as it was


def test_patients_as_a_spreadsheet_writes_them(tmp_path):
    named = lambda *names: data.check_patients(pd.DataFrame(dict(path=[str(i) for i in range(len(names))], patient=names))).patient.tolist()
    assert named('906', '906.0', '7') == ['906', '906', '7']
    for same in (['906.0', '7.0'], ['00000906', '906'], ['00000906.0', '906'], ['906', '906.0', 'p7'], ['906', '906.00', '906.5']): assert named(*same) == same


@pytest.mark.parametrize('text, columns', [
    ('Image Index;Finding Labels;OriginalImage[Width,Height];Patient ID\n1.png;Edema;2500;7\n', ['Image Index', 'Finding Labels', 'OriginalImage[Width,Height]', 'Patient ID']),
    ('Image Index;Finding Labels;OriginalImage[Width,Height];Spacing\n1.png;Edema;2500;0,143\n', ['Image Index', 'Finding Labels', 'OriginalImage[Width,Height]', 'Spacing']),
    ('path\tlabels\tnote, or none\n1.png\tEdema\tx\n', ['path', 'labels', 'note, or none']),
    ('path,labels,note (a;b;c;d)\n1.png,Edema,x\n', ['path', 'labels', 'note (a;b;c;d)']), # read rightly before, as are those below
    ('path,labels (a;b)\n1.png,a;b\n', ['path', 'labels (a;b)']),
    ('path,labels,"size;mm"\n1.png,Edema,5,\n', ['path', 'labels', 'size;mm']),
    ('patientId,x;y\n1,2\n', ['patientId', 'x;y']),
    ('path,"first\nsecond;third",labels\n1.png,"a\nb",Edema\n', ['path', 'first\nsecond;third', 'labels']),
])
def test_the_sign_between_columns(tmp_path, text, columns):
    (tmp_path/'t.csv').write_text(text)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); assert data.read_csv(tmp_path/'t.csv').columns.tolist() == columns


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-8-sig'])
def test_a_table_with_a_mark_of_its_encoding(tmp_path, encoding):
    (tmp_path/'t.csv').write_text('path\tlabels\nBürger.png\tEdema\n', encoding=encoding)
    assert data.read_csv(tmp_path/'t.csv').to_dict('records') == [dict(path='Bürger.png', labels='Edema')]



def test_a_source_that_only_reads_has_no_other_view(tmp_path):
    "view and trim were passed over without a word."
    table = get_source('table', table_of(tmp_path), root=tmp_path).table
    source = data.Source('own', table, read=lambda row, height, width: dict(film=np.full((height, width), int(row.path[:-4]), np.uint8)))
    assert get_films(source, 16).film[:, 0, 0].tolist() == list(range(12))
    for how in (dict(view='crop'), dict(trim=True)):
        with pytest.raises(LazysegError, match=r"'own' reads its films by itself.*load="): get_films(source, 16, **how)
    whole = data.Source('whole', table, load=lambda row: dict(film=np.full((40, 32), .5)))
    assert len(get_films(whole, 16, trim=True)) == 12


def test_no_films_are_chosen():
    films = loader_films()
    for none in ([], np.zeros(len(films), bool), np.array([], int), slice(0, 0)): assert len(films[none]) == len(films[none].table) == 0


@pytest.mark.parametrize('height, width, fine', [(80, 64, True), (20, 16, True), (21, 17, True), (33, 27, True), (40, 33, True), (32, 40, False), (40, 40, False), (200, 167, False), (200, 163, True)])
def test_a_mask_of_another_shape_is_refused(tmp_path, height, width, fine):
    "A square mask was stretched over a film that is none. A pixel more or less comes from making it smaller."
    table = table_of(tmp_path)
    picture(tmp_path/'lungs'/'3.png', lungs=True, height=height, width=width)
    source = get_source('table', table, root=tmp_path)
    if fine: assert get_films(source, 16).lungs[3].any()
    else:
        with pytest.raises(LazysegError, match=f'3.png has 32 x 40 pixels and its mask lungs/3.png {width} x {height}'): get_films(source, 16)


def test_a_mask_may_have_the_pixels_of_its_file(tmp_path):
    dicom(tmp_path/'a.dcm', np.random.default_rng(0).integers(0, 4096, (32, 32)), PixelSpacing=[2, 1])
    for name, height, fine in (('drawn.png', 32, True), ('square.png', 64, True), ('other.png', 50, False)):
        picture(tmp_path/name, lungs=True, height=height, width=32)
        load = lambda: data.load_row(pd.Series(dict(path='a.dcm', lungs=name)), tmp_path)
        if fine: assert load()['lungs'].shape == (64, 32)
        else:
            with pytest.raises(LazysegError, match='another shape'): load()


def test_a_table_beside_no_films_is_told_at_once(tmp_path):
    table = table_of(tmp_path/'films')
    table.to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(LazysegError, match=r"No film is where the table says: .*0\.png is not there. Paths are whole, or start from "): get_source('table', tmp_path/'t.csv')
    with pytest.raises(LazysegError, match='No film is where'): get_source('table', table, root=tmp_path/'gone')
    assert len(get_source('table', tmp_path/'t.csv', root=tmp_path/'films')) == 12
    for i in range(4): (tmp_path/'films'/f'{i}.png').unlink() # one of the first is enough: films that are missing are told when they are read
    assert len(get_source('table', table, root=tmp_path/'films')) == 12
    assert len(get_source('table', table.assign(path=[str(tmp_path/'films'/o) for o in table.path]))) == 12



def test_bad_files_are_named_counted_skipped_or_stopped_on(tmp_path):
    table = table_of(tmp_path)
    whole = (tmp_path/'1.png').read_bytes()
    (tmp_path/'1.png').write_bytes(whole[:len(whole)//2]); (tmp_path/'2.png').write_bytes(b''); (tmp_path/'3.png').write_text('hello'); (tmp_path/'4.png').unlink()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path/'5.png')
    source = get_source('table', table, root=tmp_path)
    with pytest.raises(LazysegError, match=r'1\.png'): get_films(source, 16)
    with pytest.warns(UserWarning, match='5 of 12 films are left out'): films = get_films(source, 16, bad='skip')
    assert films.table.path.tolist() == ['0.png', *(f'{i}.png' for i in range(6, 12))] and len(films.film) == len(films.lungs) == 7
    with pytest.raises(LazysegError, match=r'5 of 12 .*1\.png'): get_films(source, 16) # the cache remembers, and stops all the same
    for i in range(7, 12, 2): (tmp_path/f'{i}.png').write_bytes(b'')
    with pytest.raises(LazysegError, match='Not one diseased film'), warnings.catch_warnings():
        warnings.simplefilter('ignore'); get_films(source, 16, bad='skip')


def test_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(film, 'BIGGEST', 1000)
    picture(tmp_path/'big.png')
    with pytest.raises(LazysegError, match='1,280 pixels'): read_film(tmp_path/'big.png')
    def header(w, h): # a PNG that claims to be huge and holds nothing
        import struct, zlib
        chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
        return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
    (tmp_path/'bomb.png').write_bytes(header(60000, 60000))
    with pytest.raises(LazysegError, match='bomb.png'): read_film(tmp_path/'bomb.png')


def test_one_film_a_class_can_be_loaded_but_not_split(tmp_path):
    films = get_films(get_source('table', table_of(tmp_path)[:2], root=tmp_path), 16)
    with pytest.raises(LazysegError, match='There is no'): unpaired_loaders(films, device='cpu')


# -- reading ------------------------------------------------------------------------------------------------------------

def test_deep_films(tmp_path):
    ramp = np.linspace(0, 4095, 32*32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path/'12.png')
    assert np.abs(read_film(tmp_path/'12.png') - ramp/4095).max() < 1e-6
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path/'f.tif')
    with pytest.raises(LazysegError, match='white is not known'): read_film(tmp_path/'f.tif')


def dicom(path, pixels, **tags):
    pydicom = pytest.importorskip('pydicom')
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.ExplicitVRLittleEndian, '1.2.840.10008.5.1.4.1.1.1.1', '1.2.3'
    ds = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b'\0'*128)
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = *pixels.shape[-2:], 1, 16, 12, 11, 0
    ds.PhotometricInterpretation, ds.PixelData = 'MONOCHROME2', pixels.astype('<u2').tobytes()
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_dicom(tmp_path):
    ramp = np.linspace(0, 4095, 32*32).reshape(32, 32).round()
    plain = read_film(dicom(tmp_path/'a.dcm', ramp))
    assert np.abs(plain - ramp/4095).max() < 1e-4
    assert np.abs(read_film(dicom(tmp_path/'b.dcm', 4095 - ramp, PhotometricInterpretation='MONOCHROME1')) - plain).max() < 1e-4
    window = read_film(dicom(tmp_path/'c.dcm', ramp, WindowCenter=2048, WindowWidth=1024))
    assert window[ramp < 1534].max() == 0 and window[ramp > 2562].min() == 1 and abs(window[ramp == ramp.flat[512]][0] - .5) < .01 # nothing beyond the window shows
    rescaled = read_film(dicom(tmp_path/'d.dcm', ramp, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=2048))
    assert np.abs(rescaled - window).max() < .01 # the same part of the scale, in other units
    with pytest.raises(LazysegError, match='3 frames'): read_film(dicom(tmp_path/'e.dcm', np.stack([ramp]*3), NumberOfFrames=3))
    with pytest.raises(LazysegError, match='colour'): read_film(dicom(tmp_path/'f.dcm', ramp, SamplesPerPixel=3, PhotometricInterpretation='RGB'))
    (tmp_path/'g.dcm').write_bytes((tmp_path/'a.dcm').read_bytes()[:400])
    with pytest.raises(LazysegError, match='g.dcm'): read_film(tmp_path/'g.dcm')
    (tmp_path/'no ending').write_bytes((tmp_path/'a.dcm').read_bytes())
    assert np.abs(read_film(tmp_path/'no ending') - plain).max() == 0


def test_dicom_without_pydicom_says_which_extra(tmp_path, monkeypatch):
    (tmp_path/'a.dcm').write_bytes(b'\0'*128 + b'DICM')
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    with pytest.raises(LazysegError, match=r'lazyseg\[dicom\]'): read_film(tmp_path/'a.dcm')


def test_films_that_could_not_be_read_are_tried_again(tmp_path, monkeypatch):
    "A library was missing, or a permission: that is no fault of the film, and not for ever."
    source = get_source('table', table_of(tmp_path), root=tmp_path)
    read = data.read_film
    def broken(path):
        if str(path).endswith('3.png'): raise LazysegError(f'{path} needs something that is not there.')
        return read(path)
    monkeypatch.setattr(data, 'read_film', broken)
    with pytest.warns(UserWarning, match='1 of .* left out'): few = get_films(source, 16, bad='skip')
    with pytest.warns(UserWarning, match='1 of .* left out'): get_films(source, 16, bad='skip')
    monkeypatch.setattr(data, 'read_film', read)
    assert len(get_films(source, 16, bad='skip')) == len(get_films(source, 16)) == len(few) + 1


def test_a_value_that_has_no_name_is_not_dropped_in_silence(tmp_path):
    (tmp_path/'films.csv').write_text('path,patient,labels\n1.png,a,Effusion,Pneumonia\n')
    with pytest.raises(LazysegError, match='row 1: 4 values for 3 names'): data.read_csv(tmp_path/'films.csv')
    (tmp_path/'films.csv').write_text('path,patient,labels\n1.png,a,Effusion,\n')
    assert data.read_csv(tmp_path/'films.csv').labels.tolist() == ['Effusion']


def test_a_folder_is_read_through_its_links_and_whatever_its_masks_are_called(tmp_path):
    for kind, shade in (('healthy', 50), ('diseased', 90)):
        (tmp_path/'far'/kind).mkdir(parents=True), (tmp_path/'films'/kind).mkdir(parents=True)
        for i in range(3): picture(tmp_path/'far'/kind/f'{kind}{i}.png', shade)
        (tmp_path/'films'/kind/'more').symlink_to(tmp_path/'far'/kind)
    (tmp_path/'films'/'truth').mkdir()
    for name in ('diseased0.PNG', 'diseased1.jpg', 'nobody.png'): picture(tmp_path/'films'/'truth'/name.lower(), 255), (tmp_path/'films'/'truth'/name.lower()).rename(tmp_path/'films'/'truth'/name)
    with pytest.warns(UserWarning, match='1 of 3 masks in truth/ are named like no film'): table = get_source('folder', tmp_path/'films').table
    assert len(table) == 6 and sorted(table.truth[table.truth != '']) == ['truth/diseased0.PNG', 'truth/diseased1.jpg']


@pytest.mark.parametrize('masks, owners', [
    (['p1/1', 'p2/1'], {'healthy/p1/1': 'p1/1', 'diseased/p2/1': 'p2/1'}), # as the films lie
    (['diseased/p2/1'], {'diseased/p2/1': 'diseased/p2/1'}), # under the name of the kind as well
    (['p1/1', '2'], {'healthy/p1/1': 'p1/1', 'diseased/p2/2': '2'}), # a name that occurs once is enough
    (['diseased/2'], {'diseased/p2/2': 'diseased/2'}),
    (['p3/2'], {}), # the mask of another patient
    (['more/3'], {'diseased/3': 'more/3'}), # of a film that lies in no folder
])
def test_masks_of_patients_whose_films_have_the_same_names(tmp_path, masks, owners):
    for o in ('healthy/p1/1', 'healthy/p0/1', 'diseased/p2/1', 'diseased/p2/2', 'diseased/3'): picture(tmp_path/f'{o}.png')
    for o in masks: picture(tmp_path/'truth'/f'{o}.png', lungs=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        table = get_source('folder', tmp_path).table
    found = {film: mask for film, mask in zip(table.path, table.truth) if mask}
    assert found == {f'{film}.png': f'truth/{mask}.png' for film, mask in owners.items()}
    assert any('named like no film' in str(o.message) for o in said) == (len(owners) < len(masks))


@pytest.mark.parametrize('masks, what', [(['1'], 'films'), (['p2/1', 'diseased/p2/1'], 'masks'), (['a/3', 'b/3'], 'masks')])
def test_masks_of_a_folder_that_could_belong_to_two(tmp_path, masks, what):
    for o in ('healthy/p1/1', 'diseased/p2/1', 'diseased/3'): picture(tmp_path/f'{o}.png')
    for o in masks: picture(tmp_path/'truth'/f'{o}.png', lungs=True)
    with pytest.raises(LazysegError, match=f'Two {what} are named .* in folders as their films do'): get_source('folder', tmp_path)


@pytest.mark.parametrize('yes, ending', [(1, 'png'), (255, 'png'), (255, 'jpg')])
def test_a_mask_is_the_same_mask_whatever_it_came_in(tmp_path, yes, ending):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:41, 11:30] = yes
    Image.fromarray(mask).save(tmp_path/f'mask.{ending}')
    assert np.array_equal(read_mask(tmp_path/f'mask.{ending}'), mask > 0)
    Image.fromarray(mask*0).save(tmp_path/'none.png')
    assert not read_mask(tmp_path/'none.png').any()


def test_download_without_kagglehub_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, 'kagglehub', None)
    with pytest.raises(LazysegError, match=r'lazyseg\[download\].*chest-xray-pneumonia'): get_source('pneumonia')


def test_resize_keeps_the_mean_and_never_pads():
    rng = np.random.default_rng(0)
    image = rng.random((300, 200)).astype(np.float32)
    assert abs(resize(image, 16, 16).mean() - image.mean()) < .005
    assert make_view(dict(film=np.ones((300, 200))), 16, 16)['film'].min() == 255
    lungs = np.zeros((300, 200), bool); lungs[50:250, 0:80] = lungs[50:250, 120:200] = True # up to the film's edge
    for view in ('crop', 'aligned', 'lungs'):
        seen = make_view(dict(film=image*.2 + .7, lungs=lungs), 32, 32, view)
        shown = template_region(32, 32) if view != 'crop' else np.ones((32, 32), bool)
        assert seen['film'][shown].min() > 0


# -- cache --------------------------------------------------------------------------------------------------------------

def test_cache_is_versioned_by_settings_and_files(tmp_path, monkeypatch):
    source = get_source('table', table_of(tmp_path), root=tmp_path)
    a = get_films(source, 16)
    folders = lambda: {p.name for p in (tmp_path/'cache'/'films').iterdir()}
    assert len(folders()) == 1 and isinstance(a.film, np.memmap)
    get_films(source, 16); assert len(folders()) == 1
    get_films(source, 24); get_films(source, 16, view='crop'); assert len(folders()) == 3
    old = a.film[3].copy()
    picture(tmp_path/'3.png', 99); os.utime(tmp_path/'3.png', (1, 1))
    assert (get_films(source, 16).film[3] != old).any() and len(folders()) == 4
    monkeypatch.setattr(data, 'CACHE_VERSION', -1)
    get_films(source, 16); assert len(folders()) == 5


def test_a_killed_build_goes_on_where_it_stopped(tmp_path):
    table = table_of(tmp_path/'films', 600)
    table.to_csv(tmp_path/'films'/'t.csv', index=False)
    script = textwrap.dedent(f"""
        import os, signal
        from lazyseg import data
        source, done = data.get_source('table', r'{tmp_path/'films'/'t.csv'}'), []
        load = source.load
        def count(row):
            done.append(row.path)
            if len(done) == 400: os.kill(os.getpid(), signal.SIGKILL)
            return load(row)
        source.load = count
        data.get_films(source, 16)
    """)
    assert subprocess.run([sys.executable, '-c', script], env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)), capture_output=True).returncode == -9
    source, again = get_source('table', tmp_path/'films'/'t.csv'), []
    load = source.load
    source.load = lambda row: (again.append(row.path), load(row))[1]
    films = get_films(source, 16)
    assert len(again) <= 600 - 256 and len(films) == 600 # at least the first handful was kept
    assert (films.film[0] == make_view(load(next(source.table.itertuples(index=False))), 16, 16)['film']).all()


# -- loaders ------------------------------------------------------------------------------------------------------------

def loader_films(sick=6, well=30):
    n = sick + well
    film = np.repeat(np.arange(n, dtype=np.uint8)[:, None, None], 16, 1).repeat(16, 2)
    table = pd.DataFrame(dict(path=[str(i) for i in range(n)], patient=[str(i) for i in range(n)], diseased=np.arange(n) < sick, split='train'))
    return data.Films(np.concatenate([film, film]), pd.concat([table, table.assign(split='valid')]))


def test_epoch_is_the_larger_domain_and_the_smaller_is_dealt_evenly():
    dls = unpaired_loaders(loader_films(), 5, augment='none', device='cpu')
    batches = [tuple((o[:, 0, 0, 0]*255).round().int().tolist() for o in b) for b in dls.train]
    well, sick = (sum((b[i] for b in batches), []) for i in (0, 1))
    assert sorted(well) == list(range(6, 36)) and all(sick.count(i) == 5 for i in range(6))
    assert sorted(sick[:6]) == list(range(6)) and sick[:6] != sick[6:12] # gone through whole, then shuffled anew
    second = [int((b[0][0, 0, 0, 0]*255).round()) for b in dls.train]
    assert second != [b[0][0] for b in batches]
    assert [len(b[0]) for b in dls.valid] == [5]*6


def test_loaders_train_in_a_fastai_learner():
    import torch
    import fastai.callback.progress # no_bar
    from fastai.learner import Learner
    dls = unpaired_loaders(loader_films(), 5, device='cpu')
    model = torch.nn.Conv2d(1, 1, 1)
    learner = Learner(dls, model, loss_func=lambda a, b: (a.mean() - b.mean())**2)
    with learner.no_bar(), learner.no_logging(): learner.fit(2)
    assert len(learner.recorder.values) == 2


# -- real label tables and films ------------------------------------------------------------------------------------------

@real
def test_real_nih_tables():
    full = nih_table(CXR/'labels'/'Data_Entry_2017_v2020.csv.gz')
    assert len(full) == 112120 and full.patient.nunique() == 30805
    chosen = data.choose_domains(full, 'Hernia')
    assert chosen.diseased.sum() == 227 and (~chosen.diseased).sum() == 60361
    split = split_patients(chosen)
    assert (split.groupby(chosen.patient).nunique() == 1).all() and abs((split == 'test').mean() - .2) < .005
    sample = nih_table(CXR/'labels'/'nih_kaggle_sample_labels.csv.gz')
    assert data.query_labels(sample.labels, 'Hernia').sum() == 13 and data.years(sample.age[0]) == 60


@real
def test_real_truth_files():
    labels = CXR/'labels'
    boxes = data.nih_boxes(labels/'BBox_List_2017.csv.gz', 'Infiltration')
    assert len(boxes) == 880 and sum(len(v[1]) for v in boxes.values()) == 123
    rsna = data.rsna_boxes(labels/'rsna_stage_2_train_labels.csv.gz')
    assert len(rsna) == 26684 and sum('Pneumonia' in v[0] for v in rsna.values()) == 6012 and sum(len(v[1]) for v in rsna.values()) == 9555
    det = data.chestxdet_polygons(labels/'ChestX_Det_train.json.gz', 'Emphysema') | data.chestxdet_polygons(labels/'ChestX_Det_test.json.gz', 'Emphysema')
    assert len(det) == 3578 and sum('Emphysema' in v[0] for v in det.values()) == 176
    mask = draw_shapes(next(v[1] for v in det.values() if v[1]), 64, 64)
    assert 0 < mask.mean() < .6


@real
def test_real_index():
    with pytest.raises(LazysegError, match='official split leaks'): get_source('table', CXR/'index.csv', 'Edema', where="dataset == 'nih64'", split='official')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        source = get_source('table', data=CXR/'index.csv', disease='pneumonia', where="dataset == 'kermany_orig' and split != 'official_test_pneumonia_only'", split='official')
    assert set(source.table.split) == {'train', 'valid', 'test'}
    sub = source.table.groupby('diseased').head(4)
    few = data.Source('few', sub.reset_index(drop=True), load=source.load, root=source.root)
    films = get_films(few, 32, view='lungs')
    assert len(films) == 8 and films.region.mean() > .3 and (films.film[:, films.region == 0] == 0).all()
    nih = get_source('table', CXR/'index.csv', 'Pneumonia', healthy='without Pneumonia', where="dataset == 'nih' and mask_path != ''", split='patients')
    assert nih.table.has_truth.all()


GROWS = """
import sys, numpy as np, pandas as pd
from lazyseg.data import Source, get_films, get_source
own = lambda: next(int(line.split()[1])*1024 for line in open('/proc/self/status') if line.startswith('RssAnon'))
def read(table):
    source = get_source('table', table, 'Edema', healthy='without Edema')
    source.arrays = lambda height, aspect: dict(film=np.broadcast_to(np.uint8(0), (len(source), height, height)))
    return get_films(source, 16)
small = read(sys.argv[1])
before = own()
films = read(sys.argv[2])
print((own() - before)/len(films))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file() or platform.libc_ver()[0] != "glibc", reason="asks Linux, and glibc")
@pytest.mark.skipif(int(pd.__version__.partition(".")[0]) < 3, reason="older pandas copies the table, and the copy stays until Python next looks for garbage")
def test_a_large_table_costs_what_it_holds(tmp_path):
    "60,000 films cost a process some 190 bytes each; 390 before what reading leaves behind was handed back."
    for n in (600, 60_000):
        rows = [f"images_{i * 12 // n + 1:03}/images/{i // 4:08}_{i % 4:03}.png,{('No Finding', 'Edema|Effusion')[i // 4 % 3 == 0]},{i % 4},{i // 4},57,M,PA" for i in range(n)]
        (tmp_path / f"{n}.csv").write_text("\n".join(["path,labels,follow-up,patient,age,sex,view", *rows]))
        picture(tmp_path / rows[0].partition(",")[0]) # a source asks whether the first films are there, and no more
    ran = subprocess.run([sys.executable, "-c", GROWS, str(tmp_path / "600.csv"), str(tmp_path / "60000.csv")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert 50 < float(ran.stdout) < 260, ran.stdout
