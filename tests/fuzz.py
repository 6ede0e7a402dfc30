"""Thousands of hurt inputs through everything that reads: `python tests/fuzz.py` (all, some minutes), `--only png --at 17` (one again).

An input is a valid file with something done to it: bits flipped, slices cut or doubled, numbers put to their extremes, a checksum
mended so that the fault lies deeper, a cell of a table or a node of a JSON tree replaced. It passes when the reader gives a right
result or raises a `LazysegError`. It fails on any other exception, a wrong shape or value, more than 10 seconds (of processor time, or 200 by the clock), more than 1 GB, a
process that dies, or a file written where none belongs.

Inputs are made from (seed, target, number) alone, so a failure comes back by its number. To put something new under fire, decorate a
function `(data, folder)` with `@target(name, inputs, mutate)`: `mutate(rng)` makes the data, the function writes what it needs under
`folder`, calls the code, and asserts what has to hold. `tests/test_data_fuzz.py` runs a few inputs of every target in each test run."""
import argparse
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1])) # the checkout that this file lies in

SECONDS, MEMORY = 10, 1 << 30
TARGETS = {} # name -> (check, inputs, mutate)


def target(name, inputs, mutate):
    def keep(check): TARGETS[name] = check, inputs, mutate; return check
    return keep


# -- what is done to bytes -----------------------------------------------------------------------------------------------

EXTREMES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def hurt_bytes(data, rng, most=4, upto=None):
    "One to `most` faults, within the first `upto` bytes."
    data = bytearray(data)
    for _ in range(rng.integers(1, most + 1)):
        n = max(min(len(data), upto or len(data)), 1)
        a, b = sorted(rng.integers(0, n, 2).tolist())
        b = min(b, a + int(rng.integers(1, 200)))
        fault = rng.integers(0, 10)
        if not data: data = bytearray(rng.bytes(20))
        elif fault == 0: data[a] ^= 1 << int(rng.integers(8))
        elif fault == 1: data[a] = int(rng.choice([0, 1, 32, 48, 127, 128, 255]))
        elif fault in (2, 3):
            size = int(rng.choice([1, 2, 4])); value = int(rng.choice(EXTREMES)) % 256**size
            data[a:a+size] = value.to_bytes(size, 'little' if rng.random() < .5 else 'big')
        elif fault == 4: del data[a:b]
        elif fault == 5: data[a:a] = data[a:b]*int(rng.integers(1, 4))
        elif fault == 6: data[a:a] = rng.bytes(int(rng.integers(1, 30)))
        elif fault == 7: del data[a:]
        elif fault == 8: data[a:b] = bytes(b - a)
        else: data += rng.bytes(int(rng.integers(1, 100)))
    return bytes(data)


def chunks_of(png):
    at = 8
    while at + 12 <= len(png):
        size = int.from_bytes(png[at:at+4], 'big')
        if at + 12 + size > len(png): return
        yield png[at+4:at+8], png[at+8:at+8+size]
        at += 12 + size


def make_png(parts): return b'\x89PNG\r\n\x1a\n' + b''.join(len(b).to_bytes(4, 'big') + k + b + zlib.crc32(k + b).to_bytes(4, 'big') for k, b in parts)


def hurt_png(data, rng):
    "Hurt one chunk and mend the checksums, or hurt what is packed in it, or the bytes as they are."
    way = rng.integers(0, 4)
    parts = list(chunks_of(data))
    if way == 0 or not parts: return hurt_bytes(data, rng)
    i = int(rng.integers(len(parts)))
    kind, body = parts[i]
    if way == 1: parts[i] = kind, hurt_bytes(body, rng, 2)
    elif way == 2: parts[0] = parts[0][0], hurt_bytes(parts[0][1], rng, 2)
    elif kind == b'IDAT':
        try: parts[i] = kind, zlib.compress(hurt_bytes(zlib.decompress(body), rng))
        except zlib.error: pass
    else: parts.insert(int(rng.integers(len(parts) + 1)), parts[int(rng.integers(len(parts)))])
    return make_png(parts)


NASTY = ['', ' ', '0', '-1', '1e309', 'nan', 'inf', '1.5', '99999999999999999999', 'x'*5000, '"', "'", '\0', '\n', ';', '|', '||', 'é', '\u202e', '💀', '../../up.png', '/etc/passwd',
         'C:\\films\\1.png', '..\\up.png', '=1+1', 'None', 'True', '[]', '{}', 'No Finding', 'Pneumonia', '-1 -1', '1 2 3']


def hurt_text(text, rng):
    "A cell or a word of a table replaced, lines doubled, or the bytes hurt."
    if rng.random() < .4: return hurt_bytes(text.encode(), rng)
    lines = text.split('\n')
    for _ in range(rng.integers(1, 5)):
        i = int(rng.integers(len(lines)))
        cells = lines[i].split(',')
        way, j = rng.integers(0, 6), int(rng.integers(len(cells)))
        if way < 3: cells[j] = str(rng.choice(NASTY))
        elif way == 3: cells.insert(j, str(rng.choice(NASTY)))
        elif way == 4: del cells[j]
        else: lines.insert(i, lines[int(rng.integers(len(lines)))])
        lines[i] = ','.join(cells)
    return '\n'.join(lines).encode('utf-8', 'surrogatepass')


ODD = [None, True, 0, -1, 1, 1.5, 1e308, float('nan'), float('inf'), 2**63, '', 'x', '0', [], {}, [[]], [1], [1, 2], [[0, 0], [1, 1]], {'size': [0, 0]}, 'P'*200, '\ud800', [2**40, 2**40]]


def hurt_tree(tree, rng):
    "One node of a JSON tree replaced, doubled or dropped."
    places = []
    def walk(node):
        for k in (list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()):
            places.append((node, k)); walk(node[k])
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.integers(1, 4)):
        places.clear(); walk(tree)
        if not places: return ODD[int(rng.integers(len(ODD)))]
        node, k = places[int(rng.integers(len(places)))]
        if rng.random() < .2: del node[k]
        elif rng.random() < .2 and isinstance(node, list): node.insert(k, node[k])
        else: node[k] = ODD[int(rng.integers(len(ODD)))]
    return tree


def hurt_json(tree, rng):
    if rng.random() < .3: return hurt_bytes(json.dumps(tree).encode(), rng)
    if rng.random() < .02: return b'['*100_000 # as deep as it is foolish
    return json.dumps(hurt_tree(tree, rng)).encode()


# -- films ---------------------------------------------------------------------------------------------------------------

@lru_cache
def pictures():
    "Small valid films in every format and mode: {(format, note): bytes}."
    from PIL import Image
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (5, 4)).astype(np.uint8)).resize((40, 48))
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16)*257))
    turned = Image.Exif(); turned[274] = 6
    modes = {m: grey.convert(m) for m in ('L', 'RGB', 'P', 'LA', 'RGBA', '1', 'CMYK')}
    kinds = [('PNG', m, {}) for m in ('L', 'RGB', 'P', 'LA', 'RGBA', '1')] + [('PNG', 'L', dict(exif=turned)), ('PNG', 'L', dict(transparency=7))]
    kinds += [('JPEG', m, how) for m in ('L', 'RGB', 'CMYK') for how in ({}, dict(progressive=True), dict(exif=turned))]
    kinds += [('BMP', m, {}) for m in ('L', 'RGB', '1')] + [('WEBP', 'RGB', {}), ('WEBP', 'RGBA', dict(lossless=True))]
    kinds += [('TIFF', m, dict(compression=c)) for m in ('L', 'RGB', '1') for c in (None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits')] + [('TIFF', 'CMYK', dict(compression='jpeg'))]
    out = {}
    for kind, m, how in kinds:
        f = io.BytesIO(); modes[m].save(f, kind, **how); out[kind, f'{m} {how}'] = f.getvalue()
    for kind in ('PNG', 'TIFF'):
        f = io.BytesIO(); deep.save(f, kind); out[kind, '16 bit'] = f.getvalue()
    return out


def of_kind(*kinds): return [v for (k, _), v in pictures().items() if k in kinds]


def right_film(film, size=None):
    assert film.dtype == np.float32 and film.ndim == 2 and min(film.shape) >= 16, f'{film.dtype} {film.shape}'
    assert np.isfinite(film).all() and film.min() >= 0 and film.max() <= 1, f'{film.min()} {film.max()}'
    if size is not None: assert sorted(film.shape) == sorted(size), f'{film.shape} for {size}'


def read_picture(data, folder, name, size=None):
    from lazyseg.data import read_film
    path = folder/name
    path.write_bytes(data)
    right_film(read_film(path), size)


def mutate_of(hurt, *kinds): return lambda rng: hurt(rng.choice(np.array(of_kind(*kinds), object)), rng)


@target('png', 1000, mutate_of(hurt_png, 'PNG'))
def _png(data, folder):
    from lazyseg.data import read_film
    read_picture(data, folder, 'film.png')
    sizes = [(int.from_bytes(b[4:8], 'big'), int.from_bytes(b[:4], 'big')) for k, b in chunks_of(data) if k == b'IHDR']
    assert sorted(read_film(folder/'film.png').shape) in map(sorted, sizes), sizes


def header_first(data, rng): return hurt_bytes(data, rng, upto=int(rng.choice([100, 400, 10**6])))


def jpeg_size(data):
    from PIL import Image
    with Image.open(io.BytesIO(data)) as image: return image.size


@target('jpeg', 700, mutate_of(header_first, 'JPEG'))
def _jpeg(data, folder):
    read_picture(data, folder, 'film.jpg')
    read_picture(data, folder, 'film.jpg', jpeg_size(data))


@target('tiff', 500, mutate_of(header_first, 'TIFF'))
def _tiff(data, folder): read_picture(data, folder, 'film.tif')


@target('bmp and webp', 300, mutate_of(header_first, 'BMP', 'WEBP'))
def _others(data, folder): read_picture(data, folder, 'film.png') # with the wrong ending, too


@lru_cache
def dicoms():
    import pydicom
    from pydicom.dataset import Dataset
    out = []
    for signed, photo, extra in [(0, 'MONOCHROME2', {}), (0, 'MONOCHROME1', dict(WindowCenter=2000, WindowWidth=800)), (1, 'MONOCHROME2', dict(RescaleSlope=2, RescaleIntercept=-10)),
                                 (0, 'MONOCHROME2', dict(PixelSpacing=[.2, .1])), (0, 'MONOCHROME2', dict(lut=True)), (0, 'MONOCHROME1', dict(PixelPaddingValue=0)), (0, 'MONOCHROME2', dict(rle=True))]:
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.ExplicitVRLittleEndian, '1.2.840.10008.5.1.4.1.1.1.1', '1.2.3'
        ds = pydicom.dataset.FileDataset('', {}, file_meta=meta, preamble=b'\0'*128)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, '1.2.3'
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.PhotometricInterpretation = 24, 20, 1, 16, 12, 11, signed, photo
        pixels = np.linspace(0, 4095, 24*20).astype('<i2' if signed else '<u2') - (2048 if signed else 0)
        ds.PixelData = pixels.tobytes()
        if extra.pop('lut', False):
            item = Dataset(); item.LUTDescriptor = [256, 0, 8]; item.add_new((0x0028, 0x3006), 'US', list(range(256))); ds.VOILUTSequence = [item]
        packed = extra.pop('rle', False)
        for k, v in extra.items(): setattr(ds, k, v)
        if packed: ds.compress(pydicom.uid.RLELossless)
        f = io.BytesIO(); ds.save_as(f, enforce_file_format=True); out.append(f.getvalue())
    return out


TAGS = ('Rows', 'Columns', 'SamplesPerPixel', 'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation', 'NumberOfFrames', 'PhotometricInterpretation', 'WindowCenter', 'WindowWidth', 'VOILUTFunction',
        'RescaleSlope', 'RescaleIntercept', 'PixelSpacing', 'ImagerPixelSpacing', 'PixelAspectRatio', 'PixelPaddingValue', 'PixelPaddingRangeLimit', 'VOILUTSequence', 'ModalityLUTSequence')


def hurt_dicom(data, rng):
    "An element set to something odd or dropped, by pydicom; or the bytes hurt."
    import pydicom
    if rng.random() < .5: return hurt_bytes(data, rng, upto=int(rng.choice([700, 10**6])))
    ds = pydicom.dcmread(io.BytesIO(data))
    for _ in range(rng.integers(1, 4)):
        tag = TAGS[int(rng.integers(len(TAGS)))]
        value = [0, 1, 2, 7, 8, 11, 15, 16, 17, 24, 32, 64, 65535, -1, 1e30, 'nan', 'x', '', [1, 2], [.1, .3], [0, 0], None, 'MONOCHROME1', 'RGB', 'PALETTE COLOR', 'SIGMOID', []][int(rng.integers(27))]
        if rng.random() < .2: ds.pop(pydicom.datadict.tag_for_keyword(tag), None)
        else:
            try: setattr(ds, tag, value)
            except Exception: pass
    f = io.BytesIO()
    try: ds.save_as(f)
    except Exception: return hurt_bytes(data, rng)
    return f.getvalue()


@target('dicom', 1000, lambda rng: hurt_dicom(rng.choice(np.array(dicoms(), object)), rng))
def _dicom(data, folder):
    import pydicom
    read_picture(data, folder, 'film.dcm')
    ds = pydicom.dcmread(folder/'film.dcm')
    if not any(o in ds for o in TAGS[14:17]): read_picture(data, folder, 'film.dcm', (ds.Rows, ds.Columns))


# -- tables and truth files ------------------------------------------------------------------------------------------------

def films_in(folder, names):
    good = of_kind('PNG')[0]
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder/name).exists(): (folder/name).write_bytes(good)


def right_films(source, size=16):
    "Read them, and assert what has to hold of any films."
    from lazyseg.data import get_films
    films = get_films(source, size, bad='skip')
    n = len(films.table)
    assert n and films.film.shape == (n, size, size) and films.film.dtype == np.uint8, films.film.shape
    for name, part in films.parts().items(): assert part.shape == films.film.shape and (name == 'film' or part.max() <= 1), name
    assert films.table.diseased.dtype == bool and films.table.diseased.any() and not films.table.diseased.all()
    assert set(films.table.split) <= {'train', 'valid', 'test'} and films.table.groupby('patient').split.nunique().max() == 1
    assert films.table.path.is_unique and not films.table.patient.eq('').any()


TABLE = 'path,patient,labels,truth,lungs,split,age\n' + '\n'.join(f"{'ab'[i % 2]}/{i}.png,p{i//2},{('No Finding', 'Pneumonia|Edema')[i//2 % 2]},{f'm/{i}.png' if i//2 % 2 else ''},m/{i}.png,{('train', 'train', 'test')[i//2 % 3]},0{20 + i}Y" for i in range(24))


@target('table', 600, lambda rng: hurt_text(TABLE, rng))
def _table(data, folder):
    from lazyseg.data import get_source
    films_in(folder, [f"{o}/{i}.png" for i in range(24) for o in ('ab'[i % 2], 'm')])
    (folder/'t.csv').write_bytes(data)
    right_films(get_source('table', folder/'t.csv'))


SHAPES = [dict(box=[1, 2, 10, 12]), dict(polygon=[[1, 1], [20, 3], [10, 30]], size=[48, 40]), dict(runs=[5, 3, 100, 20], size=[48, 40])]


@target('shapes', 500, lambda rng: hurt_json(SHAPES, rng))
def _shapes(data, folder):
    from lazyseg.data import draw_shapes
    mask = draw_shapes(data.decode('utf-8', 'replace'), 48, 40)
    assert mask.shape == (48, 40) and mask.dtype == bool


NIH = 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n' + '\n'.join(
    f"{i//2:08}_{i % 2:03}.png,{('No Finding', 'Hernia|Effusion')[i//2 % 2]},{i % 2},{i//2},058Y,M,PA,2682,2749,0.143,0.143," for i in range(24))
NIH_BOXES = 'Image Index,Finding Label,Bbox [x,y,w,h],,,\n' + '\n'.join(f'{i//2:08}_{i % 2:03}.png,Hernia,{10*i},200,300,100,,,' for i in range(24) if i//2 % 2)


@target('nih', 300, lambda rng: (hurt_text(NIH, rng), None) if rng.random() < .5 else (NIH.encode(), hurt_text(NIH_BOXES, rng)))
def _nih(data, folder):
    from lazyseg.data import get_source
    films_in(folder, [f'images_001/images/{i//2:08}_{i % 2:03}.png' for i in range(24)])
    (folder/'Data_Entry_2017.csv').write_bytes(data[0])
    if data[1]: (folder/'BBox_List_2017.csv').write_bytes(data[1])
    right_films(get_source('nih', folder, 'Hernia', **(dict(truth=('nih', folder/'BBox_List_2017.csv')) if data[1] else {})))


def outlined(kind, disease, file, names, healthy='No Finding'):
    def check(data, folder):
        from lazyseg.data import get_source
        films_in(folder, names)
        (folder/file).write_bytes(data)
        right_films(get_source(kind, folder, disease, healthy=healthy))
    return check


NAMES = [f'f{i}.png' for i in range(12)]
RSNA = 'patientId,x,y,width,height,Target\n' + '\n'.join(f'f{i},{10*i}.0,200.0,300.0,100.0,1' if i % 2 else f'f{i},,,,,0' for i in range(12))
VINDR = 'image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n' + '\n'.join(f'f{i},Nodule/Mass,8,R1,{i},2,{i + 9},30' if i % 2 else f'f{i},No finding,14,R1,,,,' for i in range(12))
SIIM = 'ImageId, EncodedPixels\n' + '\n'.join(f'f{i}, {1024*i} 200 824 200' if i % 2 else f'f{i}, -1' for i in range(12))
DET = [dict(file_name=f'f{i}.png', syms=['Emphysema']*(i % 2), boxes=[[0, 0, 512, 1024]]*(i % 2), polygons=[[[0, 0], [512, 0], [512, 1024], [0, 1024]]]*(i % 2)) for i in range(12)]
LOCALIZE = {f'patient{i}_study1_view1_frontal': {'Edema': dict(size=[48, 40], counts='52203' if i % 2 else 'PVWX6'), 'Atelectasis': dict(size=[48, 40], counts='PVWX6')} for i in range(12)}

target('rsna', 200, lambda rng: hurt_text(RSNA, rng))(outlined('rsna', 'Pneumonia', 'stage_2_train_labels.csv', NAMES, 'No Pneumonia'))
target('vindr', 200, lambda rng: hurt_text(VINDR, rng))(outlined('vindr', 'Nodule/Mass', 'train.csv', NAMES))
target('siim', 200, lambda rng: hurt_text(SIIM, rng))(outlined('siim', 'Pneumothorax', 'train-rle.csv', NAMES))
target('chestxdet', 250, lambda rng: hurt_json(DET, rng))(outlined('chestxdet', 'Emphysema', 'ChestX_Det_train.json', NAMES))
target('chexlocalize', 250, lambda rng: hurt_json(LOCALIZE, rng))(outlined('chexlocalize', 'Edema', 'gt_segmentations_val.json', [f'CheXpert/val/patient{i}/study1/view1_frontal.jpg' for i in range(12)]))


# -- settings in words, masks, packed files ----------------------------------------------------------------------------------

QUERIES = ["Edema", "with Edema", "without Edema", "Edema|Effusion without Pneumonia", "view == 'PA' and split != 'test'", "age > 3 or path in ('a', 'b')", "`Patient ID` == '1'"]


def hurt_query(rng):
    text = str(rng.choice(QUERIES))
    if rng.random() < .3: text += str(rng.choice([".to_csv('out.csv')", " and @path", " + __import__('os')", "[0]", " if 1 else 2", "\n1", " == " + "("*500, " and not"*300, "(lambda: 1)()", " without without", "|"]))
    return hurt_bytes(text.encode(), rng).decode('utf-8', 'replace')


@target('queries', 500, hurt_query)
def _queries(text, folder):
    import pandas as pd
    from lazyseg.core import LazysegError
    from lazyseg.data import choose_domains, pick_rows, query_labels
    table = pd.DataFrame(dict(path=list('abcd'), view=['PA', 'AP']*2, split=['train', 'test']*2, labels=['No Finding', 'Edema', 'Edema|Effusion', 'Pneumonia'], **{'Patient ID': list('1234')}))
    for what in (lambda: pick_rows(table, text), lambda: choose_domains(table, text)):
        try: assert 1 <= len(what()) <= 4
        except LazysegError: pass
    assert len(query_labels(table.labels, text)) == 4


def odd_mask(rng):
    h, w = rng.integers(16, 90, 2)
    mask = np.zeros((h, w), bool)
    for _ in range(rng.integers(0, 5)):
        r, c = rng.integers(0, h), rng.integers(0, w)
        mask[r:r + int(rng.choice([1, 2, 5, 40])), c:c + int(rng.choice([1, 2, 5, 40]))] = True
    return rng.random((h, w)).astype(np.float32), ~mask if rng.random() < .1 else mask


@target('views', 300, odd_mask)
def _views(data, folder):
    from lazyseg.core import LazysegError
    from lazyseg.data import VIEWS, make_view
    film, lungs = data
    for view in VIEWS:
        for trim in (False, True):
            try: seen = make_view(dict(film=film, lungs=lungs, truth=lungs), 32, 24, view, trim)
            except LazysegError: continue
            assert all(o.shape == (32, 24) and o.dtype == np.uint8 for o in seen.values()) and seen['truth'].max() <= 1


def pack(rng):
    import gzip, zipfile
    text = rng.choice(np.array([TABLE.encode(), b'0'*int(rng.choice([10, 10**6, 3*10**8])), b''], object))
    if rng.random() < .5: data, name = gzip.compress(text, 1), 't.csv.gz'
    else:
        f, name = io.BytesIO(), 't.csv.zip'
        with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr(str(rng.choice(['t.csv', '../../up.csv', '/up.csv'])), text)
        data = f.getvalue()
    return name, hurt_bytes(data, rng) if rng.random() < .7 else data


@target('packed tables', 60, pack)
def _packed(data, folder):
    from lazyseg.data import read_csv
    (folder/data[0]).write_bytes(data[1])
    assert len(read_csv(folder/data[0]).columns)


def huge(rng):
    "Films as large as is allowed, and larger; few bytes each, since they are black."
    from PIL import Image
    kind, mode, side = str(rng.choice(['PNG', 'JPEG', 'TIFF'])), str(rng.choice(['L', 'RGB', 'RGBA', 'I;16'])), int(rng.choice([7900, 7990, 9000]))
    if mode in ('RGBA', 'I;16'): kind = 'PNG'
    f = io.BytesIO(); Image.new(mode, (side, side)).save(f, kind, **(dict(compress_level=1) if kind == 'PNG' else dict(compression='tiff_lzw') if kind == 'TIFF' else {}))
    return f.getvalue()


@target('huge films', 12, huge)
def _huge(data, folder): read_picture(data, folder, 'film.png')


# -- models, arrays, the command line --------------------------------------------------------------------------------------

@lru_cache
def model_files():
    "A small untrained model's folder: {name: bytes}."
    import torch
    from lazyseg.models import Generator, GeneratorScorer, Outliner, PupilScorer
    from lazyseg.segmenter import KnownFilms, Segmenter
    from lazyseg.thresholding import OperatingPoint
    torch.manual_seed(0)
    choices = dict(head='mask', width=8, blocks=1, norm='batch', upsample='resize', skips=False, halvings=0, map='difference')
    rng = np.random.default_rng(0)
    films = (rng.random((60, 1, 1))*150 + rng.random((60, 32, 32))*100).astype(np.uint8)
    scorer = PupilScorer(Outliner(8), GeneratorScorer(Generator(8, 1), 'difference'))
    about = dict(choices=choices, name='lazyseg', size=32, width=32, view='film', disease='pneumonia', source='phantom', seed=0, credit='', films=dict(healthy=dict(films=3, patients=3)))
    model = Segmenter(scorer, OperatingPoint(.1, smoothing=1.), about, KnownFilms.of(films[:40], films[40:]))
    with tempfile.TemporaryDirectory() as d:
        model.save(d)
        return {p.name: p.read_bytes() for p in Path(d).iterdir()} | {'metrics.json': b'{"results": {}}'}


def lay_model(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_bytes(data)
    return folder


@lru_cache
def good_model():
    from lazyseg.segmenter import Segmenter
    with tempfile.TemporaryDirectory() as d: return Segmenter.load(lay_model(Path(d)/'m', model_files()))


FILM = np.random.default_rng(1).integers(0, 256, (40, 36)).astype(np.uint8)


def right_result(found, shape):
    h, w = found.seen.shape
    assert found.mask.shape == found.map.shape == shape and found.mask.dtype == bool and found.marks.shape == found.scores.shape == (h, w)
    assert np.isfinite(found.map).all() and found.map.min() >= 0 and np.isfinite(found.counterpart).all() and np.isfinite(found.image_score)


def load_and_use(folder):
    from lazyseg.segmenter import Segmenter
    model = Segmenter.load(folder)
    lungs = np.zeros(FILM.shape, bool); lungs[8:30, 4:15] = lungs[8:30, 20:32] = True
    right_result(model.segment(FILM, lungs), FILM.shape)


@target('model settings', 500, lambda rng: hurt_json(json.loads(model_files()['settings.json']), rng))
def _settings(data, folder): load_and_use(lay_model(folder/'m', model_files() | {'settings.json': data}))


def hurt_numbers(rng):
    "A safetensors file hurt: its header's tree, its bytes, or its numbers. Its sha256 in settings.json is right, as a stranger would make it."
    name = str(rng.choice(['weights.safetensors', 'known.safetensors']))
    return hurt_tensors(name, model_files()[name], rng)


def hurt_tensors(name, data, rng):
    n = int.from_bytes(data[:8], 'little')
    way = rng.integers(0, 5)
    if way == 0: return name, hurt_bytes(data, rng, upto=int(rng.choice([8, n, 10**6])))
    if way == 1: return name, data[:8 + n] + hurt_bytes(data[8 + n:], rng, 2)
    head = json.loads(data[8:8 + n])
    if way == 2: head = hurt_tree(head, rng)
    else: # another type, a huge shape, another place
        part = head[str(rng.choice(list(head)))]
        what = rng.integers(0, 4)
        if what == 0: part['dtype'] = str(rng.choice(['F64', 'F16', 'BF16', 'I64', 'U8', 'BOOL', 'F8_E4M3', 'X']))
        elif what == 1: part['shape'] = [[2**40, 2**40], [2**62], [0], [], [-1], part['shape'][::-1], [1, *part['shape']]][int(rng.integers(7))]
        elif what == 2: part['data_offsets'] = [[0, 2**62], [4, 0], [-4, 0], [0, 0], [2**63, 2**63]][int(rng.integers(5))]
        else: head[str(rng.choice(['extra', 'pupil.x', '../../up', 'generator.', '']))] = part
    text = json.dumps(head).encode()
    return name, len(text).to_bytes(8, 'little') + text + data[8 + n:]


@target('model numbers', 500, hurt_numbers)
def _numbers(data, folder):
    import hashlib
    name, data = data
    about = json.loads(model_files()['settings.json'])
    about['files'][name] = hashlib.sha256(data).hexdigest()
    load_and_use(lay_model(folder/'m', model_files() | {name: data, 'settings.json': json.dumps(about).encode()}))


@lru_cache
def panel_files():
    "A small untrained panel's folder: {name: bytes}."
    from dataclasses import replace
    from lazyseg.panel import Diagnosis, Panel, diagnosis_net
    import torch
    torch.manual_seed(0)
    model, names = good_model(), ('pneumonia', 'edema')
    diagnosis = Diagnosis(diagnosis_net(2), names, *np.array([[1, 1], [0, 0], [.1, .1], [.2, .2]], float))
    panel = Panel({n: replace(model) for n in names}, diagnosis, known=model.known, metrics=dict(results={}))
    with tempfile.TemporaryDirectory() as d:
        panel.save(d)
        return {str(p.relative_to(d)): p.read_bytes() for p in Path(d).rglob('*') if p.is_file()}


def load_panel(folder, files):
    from lazyseg.panel import load_model
    panel = load_model(lay_model(folder/'p', files))
    found = panel.segment(FILM)
    assert found.labels.shape == FILM.shape and found.probability.shape == (len(panel.diseases),) and np.isfinite(found.probability).all()
    assert all(o.shape == FILM.shape and o.dtype == bool for o in found.masks.values())


@target('panel settings', 250, lambda rng: hurt_json(json.loads(panel_files()['panel.json']), rng))
def _panel(data, folder): load_panel(folder, panel_files() | {'panel.json': data})


@target('panel numbers', 250, lambda rng: hurt_tensors('diagnosis.safetensors', panel_files()['diagnosis.safetensors'], rng))
def _panel_numbers(data, folder):
    import hashlib
    about = json.loads(panel_files()['panel.json'])
    about['files']['diagnosis.safetensors'] = hashlib.sha256(data[1]).hexdigest()
    load_panel(folder, panel_files() | {data[0]: data[1], 'panel.json': json.dumps(about).encode()})


def odd_model(rng): return [(str(rng.choice(['weights.safetensors', 'known.safetensors', 'settings.json', 'metrics.json', 'README.md'])), int(rng.integers(0, 9))) for _ in range(rng.integers(1, 4))]


@target('model folder', 150, odd_model)
def _folder(data, folder):
    "Files that are missing, empty, folders, links to elsewhere, pipes, pickles, of another model, or too many."
    import pickle
    m = lay_model(folder/'m', model_files())
    for name, way in data:
        file = m/name
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        if way == 1: file.write_bytes(b'')
        elif way == 2: file.mkdir()
        elif way == 3: file.symlink_to('/dev/zero')
        elif way == 4: file.symlink_to(folder/'elsewhere'); (folder/'elsewhere').write_bytes(model_files()[name]) # the Hub's cache is made of links
        elif way == 5: file.symlink_to(file.name)
        elif way == 6: os.mkfifo(file)
        elif way == 7: file.write_bytes(pickle.dumps(dict(a=1))); (m/'pytorch_model.bin').write_bytes(pickle.dumps(1)); (m/'config.json').write_text('{"auto_map": "x.py"}')
        elif way == 8: # longer than any memory, in no room on the disk
            with open(file, 'wb') as f: f.truncate(1 << 40)
    load_and_use(m)


def odd_array(rng):
    "Arrays of any type, shape and content; mostly what one might give by mistake."
    kind = str(rng.choice(['u1', 'u2', 'u4', 'u8', 'i1', 'i2', 'i4', 'i8', 'f2', 'f4', 'f8', 'g', '?', 'c8', 'O', 'U3', 'M8[s]', 'V4']))
    h, w = (int(rng.choice([0, 1, 2, 15, 16, 17, 40, 300])) for _ in 'hw')
    shape = [(), (h,), (h, w), (h, w), (h, w), (1, h, w), (2, h, w), (h, w, 1), (h, w, 2), (h, w, 3), (h, w, 4), (1, 1, h, w)][int(rng.integers(12))]
    values = rng.integers(0, 256, shape)
    if kind[0] in 'fg' and rng.random() < .7: values = rng.random(shape)
    try: array = np.asarray(values).astype(kind)
    except (TypeError, ValueError): array = np.zeros(shape, kind)
    if array.size and array.dtype.kind in 'iufg' and rng.random() < .5:
        top = np.iinfo(kind) if array.dtype.kind in 'iu' else np.finfo(kind)
        odd = [top.max, top.min, 0, 1] + ([np.nan, np.inf, -np.inf, -0., 1e-320] if array.dtype.kind == 'f' else [])
        array.flat[int(rng.integers(array.size))] = odd[int(rng.integers(len(odd)))]
        if rng.random() < .2: array[...] = odd[int(rng.integers(len(odd)))]
    way = rng.integers(0, 12)
    if way == 0: return np.broadcast_to(np.uint8(7), (100_000, 100_000))
    if way == 1 and array.ndim: return array[::-1]
    if way == 2: return array.T
    if way == 3: return array.tolist()
    if way == 4: return [array, FILM]
    if way == 5: return [None, {}, 'nowhere.png', 3, [], [[]], '', '\0', b'x', '~nobody/x', float('nan')][int(rng.integers(11))]
    if way in (6, 7):
        import torch
        try: film = torch.from_numpy(np.ascontiguousarray(array))
        except TypeError: return array
        return film.to(torch.bfloat16).requires_grad_() if way == 7 and film.is_floating_point() else film
    return array


@target('arrays', 800, odd_array)
def _arrays(film, folder):
    found = good_model().segment(film)
    for o in found if isinstance(found, list) else [found]: right_result(o, o.place.shape)


def hurt_film(rng):
    kind = str(rng.choice(['PNG', 'JPEG', 'TIFF', 'BMP', 'WEBP', 'DICOM']))
    if kind == 'DICOM': return 'film.dcm', hurt_dicom(rng.choice(np.array(dicoms(), object)), rng)
    return 'film.png', (hurt_png if kind == 'PNG' else header_first)(rng.choice(np.array(of_kind(kind), object)), rng)


@target('segment files', 400, hurt_film)
def _files(data, folder):
    from lazyseg.data import read_film
    (folder/data[0]).write_bytes(data[1])
    found = good_model().segment(folder/data[0])
    right_result(found, read_film(folder/data[0]).shape)
    found.overlay(folder/data[0])


@target('huge films marked', 4, huge)
def _huge_marked(data, folder):
    (folder/'film.png').write_bytes(data)
    found = good_model().segment(folder/'film.png')
    found.mask, found.overlay(folder/'film.png')


@target('dicom seg', 150, lambda rng: (hurt_dicom(rng.choice(np.array(dicoms(), object)), rng), str(rng.choice(NASTY)), rng.random() < .7))
def _seg(data, folder):
    import pydicom
    from lazyseg.data import read_film
    from lazyseg.segmenter import save_dicom_seg
    film = data[0]
    if data[2]: # with what a SEG object refers to
        try:
            ds = pydicom.dcmread(io.BytesIO(film)); ds.StudyInstanceUID = ds.SeriesInstanceUID = '1.2.4'; ds.Modality = 'DX'
            f = io.BytesIO(); ds.save_as(f, enforce_file_format=True); film = f.getvalue()
        except Exception: pass
    (folder/'film.dcm').write_bytes(film)
    save_dicom_seg(folder/'film.dcm', read_film(folder/'film.dcm') > .5, dict(disease=data[1]), folder/'seg.dcm')
    seg = pydicom.dcmread(folder/'seg.dcm'); kept = pydicom.dcmread(folder/'film.dcm')
    assert (seg.Rows, seg.Columns) == (kept.Rows, kept.Columns)


ODD_NAMES = [b'a.png', b'A.PNG', b'a.jpg', b'a-1.png', b'-o.png', b'--help.png', b'\xff\xfe.png', 'Müller Jürgen.png'.encode(), b'new\nline.png', b'x'*240 + b'.png', b'~nobody.png', b'$(touch up).png',
             b';touch up;.png', b'..png', b'a..png', b'1.2.840.1', b'..\\..\\up.png', b'%s{0}.png', b'films.csv.png', b'=1+1.png', '\u202egnp.png'.encode(), b' .png', b'con.png']


def odd_call(rng):
    "A folder of odd films, options, and what lies in the way."
    films = [(bytes(rng.choice(np.array(ODD_NAMES, object))), *hurt_film(rng)[1:], rng.random() < .6) for _ in range(rng.integers(1, 5))]
    flags = [o for o in ('--names', '--json', '--dicom', '--quiet') if rng.random() < .3]
    if rng.random() < .2: flags += ['--threshold', str(rng.choice(['nan', 'inf', '-1', '0.5', '1e400', 'x']))]
    if rng.random() < .1: flags += ['--lungs', 'nowhere']
    return films, flags, int(rng.integers(0, 12)), hurt_text('number,film,height,width,image_score,marked,distance,warnings,fault,mask,overlay,dicom_seg,made_by\n1,a,48,40,0,0,0,,,../../up.png,/etc/passwd,,x\n', rng), rng.integers(0, 2)


@target('command line', 500, odd_call)
def _command(data, folder):
    from contextlib import redirect_stderr, redirect_stdout
    from lazyseg.cli import main
    films, flags, way, table, twice = data
    model, given, out = lay_model(folder/'m', model_files()), folder/'films', folder/'out'
    given.mkdir()
    for i, (name, film, whole) in enumerate(films):
        with open(os.path.join(os.fsencode(given), name), 'wb') as f: f.write(of_kind('PNG')[i % 3] if whole else film)
    if way == 0: out.write_bytes(b'a file')
    elif way == 1: out = folder/'m'/'settings.json'/'out'
    elif way in (2, 3, 4): out.mkdir(); (out/'films.csv').write_bytes(table)
    elif way == 5: out.mkdir(); (out/'masks').write_bytes(b'a file')
    elif way == 6: out = given
    elif way == 7: (given/'dir.png').mkdir(); (given/'loop').symlink_to(given); (given/'gone.png').symlink_to('nowhere'); os.mkfifo(given/'pipe.png')
    elif way == 8: (out/'films.csv').mkdir(parents=True)
    elif way == 9: model = folder/'films'
    elif way == 10: out = folder/'deep'/'er'/'näme with space'
    elif way == 11: out.mkdir(); (out/'masks').symlink_to(folder/'nowhere')
    before = {p: (p.is_file() and not p.is_symlink() and p.read_bytes()) for p in folder.rglob('*') if out not in p.parents and p != out and not p.is_fifo()}
    said, err = io.TextIOWrapper(io.BytesIO(), 'utf-8'), io.StringIO() # strict, as a terminal is
    for _ in range(1 + int(twice)):
        try:
            with redirect_stdout(said), redirect_stderr(err): code = main(['segment', str(given), '-m', str(model), '-o', str(out), *flags])
        except SystemExit as e: code = e.code
        assert code in (0, 1, 2, 3), code
    after = {p for p in folder.rglob('*') if out not in p.parents and p != out}
    new = after - {folder/'deep', folder/'deep'/'er'} - {p for p in folder.rglob('*') if p.is_fifo()} - set(before)
    assert not new and all(p.read_bytes() == b for p, b in before.items() if b), f'outside of the output folder: {sorted(map(str, new))}'
    if out.is_dir() and code in (0, 3):
        import csv
        rows = list(csv.DictReader(open(out/'films.csv', newline='', encoding='utf-8')))
        assert [o for o in rows if o['mask']] and all((out/o['mask']).resolve().is_relative_to(out.resolve()) and (out/o['overlay']).is_file() for o in rows if o['mask'])
    if code: from lazyseg.core import LazysegError; raise LazysegError('refused, with a code')


# -- the runner ------------------------------------------------------------------------------------------------------------

class Hang(BaseException): pass


def peak(reset=False):
    "Most memory of this process since the last reset, in bytes."
    if reset: Path('/proc/self/clear_refs').write_text('5')
    return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024


def resident(): return int(re.search(r'VmRSS:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024


def one_input(name, i, seed, scratch, measure=True):
    "(verdict, detail): 'right', 'refused', or what went wrong."
    from lazyseg.core import LazysegError
    check, _, mutate = TARGETS[name]
    folder = Path(scratch)/'in'
    for o in (folder, Path(scratch)/'cache'): shutil.rmtree(o, ignore_errors=True)
    folder.mkdir(parents=True)
    data = mutate(np.random.default_rng([seed, zlib.crc32(name.encode()), i]))
    before = measure and (resident(), peak(reset=True))[0]
    def late(*_): raise Hang(f'more than {SECONDS} s')
    old = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS) # of processor time: what else the machine does is not the reader's fault
    try:
        check(data, folder)
        verdict = 'right', ''
    except LazysegError as e: verdict = ('refused', str(e)) if len(str(e)) < 3000 else ('endless message', str(e)[:300])
    except Hang as e: verdict = 'hang', str(e)
    except Exception as e: verdict = type(e).__name__, ''.join(traceback.format_exception(e)[-3:])
    finally: signal.setitimer(signal.ITIMER_PROF, 0); signal.signal(signal.SIGPROF, old)
    if measure and peak() - before > MEMORY: return 'memory', f'{(peak() - before) >> 20} MiB'
    return verdict


def listing(folder): return {str(p.relative_to(folder)) for p in Path(folder).rglob('*')}


def work(name, first, last, seed, scratch, out):
    "In a process of its own: a line of JSON when an input starts and one when it is done."
    say = lambda **o: (out.write(json.dumps(o) + '\n'), out.flush())
    for i in range(first, last):
        say(start=i)
        before = listing(scratch)
        verdict, detail = one_input(name, i, seed, scratch)
        new = {o for o in listing(scratch) - before if not o.startswith(('in', 'cache'))}
        if new: verdict, detail = 'file written elsewhere', ', '.join(sorted(new))
        say(i=i, verdict=verdict, detail=detail)


def start_worker(name, i, last, seed, scratch):
    "A child of this process, which has imported everything already: its number."
    child = os.fork()
    if child: return child
    try:
        os.environ |= dict(HOME=f'{scratch}/home', LAZYSEG_CACHE=f'{scratch}/cache', TMPDIR=scratch)
        os.chdir(f'{scratch}/work')
        err = os.open(f'{scratch}/err', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(err, 1); os.dup2(err, 2)
        with open(f'{scratch}/out', 'w') as out: work(name, i, last, seed, scratch, out)
    except BaseException: traceback.print_exc(); sys.stderr.flush(); os._exit(1)
    os._exit(0)


def run_target(name, first, last, seed):
    "All verdicts of one target; a worker that dies is counted and replaced."
    found, i = [], first
    with tempfile.TemporaryDirectory() as scratch:
        for o in ('home', 'work'): Path(scratch, o).mkdir()
        out = Path(scratch, 'out')
        for o in (out, Path(scratch, 'err')): o.touch()
        while i < last:
            out.write_text('')
            child, size, still = start_worker(name, i, last, seed, scratch), 0, time.monotonic()
            while not (ended := os.waitpid(child, os.WNOHANG))[0]: # a hang inside C code does not hear the alarm
                time.sleep(.1)
                if (now := out.stat().st_size) != size: size, still = now, time.monotonic()
                if time.monotonic() - still > 20*SECONDS: os.kill(child, signal.SIGKILL)
            lines = [json.loads(o) for o in out.read_text().splitlines() if o.endswith('}')]
            done = [o for o in lines if 'verdict' in o]
            found += done
            i = done[-1]['i'] + 1 if done else i
            if i < last:
                found.append(dict(i=i, verdict='died', detail=f"status {ended[1]} {Path(scratch, 'err').read_text().strip()[-600:]}"))
                i += 1
    return found


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--only', help=f"one target of: {', '.join(TARGETS)}")
    ask.add_argument('--at', type=int, help='one input of it, here and with its traceback')
    ask.add_argument('--share', type=float, default=1., help='of the inputs')
    ask.add_argument('--seed', type=int, default=0)
    ask = ask.parse_args()
    warnings.simplefilter('ignore')
    import lazyseg.data, lazyseg.segmenter, lazyseg.cli # so that their own memory and time do not count
    import torch; torch.set_num_threads(1) # a forked worker has no threads of its parent
    good_model(), panel_files(), dicoms(), pictures()
    if ask.at is not None:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ['LAZYSEG_CACHE'] = f'{scratch}/cache'
            print(*one_input(ask.only, ask.at, ask.seed, scratch), sep='\n')
        return
    bad, total, start = 0, 0, time.monotonic()
    for name in [ask.only] if ask.only else TARGETS:
        n = max(1, round(TARGETS[name][1]*ask.share))
        found = run_target(name, 0, n, ask.seed)
        kinds = {}
        for o in found: kinds.setdefault(o['verdict'], []).append(o)
        total += len(found)
        print(f"{name}: {len(found)} inputs, {len(kinds.get('right', []))} right, {len(kinds.get('refused', []))} refused", flush=True)
        for kind, those in kinds.items():
            if kind in ('right', 'refused'): continue
            bad += len(those)
            print(f"  {kind}: {len(those)}, such as --only '{name}' --at {those[0]['i']}\n    " + those[0]['detail'][-900:].replace('\n', '\n    '), flush=True)
    print(f"{total} inputs in {time.monotonic() - start:.0f} s, {bad} failures")
    return 1 if bad else 0


if __name__ == '__main__': sys.exit(main())
