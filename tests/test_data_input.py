"""What may be wrong with films, tables and machines, one by one: each was found by thinking or by tests/fuzz.py, and mended."""
import gzip
import json
import os
import stat
import subprocess
import sys
import textwrap
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from lazyseg import data
from lazyseg.core import LazysegError
from lazyseg.data import draw_shapes, get_films, get_source, make_view, pick_rows, read_csv, read_film, read_text, unpaired_loaders
from lazyseg.film import film_stem, is_film, read_mask
from test_data import dicom, own_cache, picture, table_of  # noqa: F401 (own_cache is a fixture)

RAMP = np.linspace(0, 4095, 32*32).reshape(32, 32).round()


def tables(values, bits, first=0):
    from pydicom.dataset import Dataset
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new((0x0028, 0x3006), 'US', [int(v) for v in values])
    return [item]


class TestDicom:
    def test_a_table_of_8_bits_for_12_bit_films_does_not_wrap(self, tmp_path):
        "pydicom 3.0 counts such a table's entries in one byte: the 300th grey became the 44th."
        film = read_film(dicom(tmp_path/'a.dcm', RAMP, VOILUTSequence=tables(np.arange(4096)*255//4095, 8)))
        assert np.abs(film - RAMP/4095).max() < 1/200

    def test_a_table_in_place_of_rescaling_sets_the_scale(self, tmp_path):
        film = read_film(dicom(tmp_path/'a.dcm', RAMP, ModalityLUTSequence=tables(np.arange(4096)*16, 16)))
        assert np.abs(film - RAMP*16/65535).max() < 1e-4

    def test_a_packing_that_nothing_here_unpacks_is_named(self, tmp_path):
        import pydicom
        ds = pydicom.dcmread(dicom(tmp_path/'a.dcm', RAMP))
        ds.PixelData = pydicom.encaps.encapsulate([b'no picture'])
        ds['PixelData'].VR, ds.file_meta.TransferSyntaxUID = 'OB', pydicom.uid.JPEGLosslessSV1
        ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)
        with pytest.raises(LazysegError, match='JPEG Lossless.* is not installed: pip install'): read_film(tmp_path/'a.dcm')

    def test_one_half_of_a_rescaling_is_none(self, tmp_path):
        assert np.abs(read_film(dicom(tmp_path/'a.dcm', RAMP, RescaleSlope=2)) - RAMP/4095).max() < 1e-4

    @pytest.mark.parametrize('photo', ['MONOCHROME1', 'MONOCHROME2'])
    @pytest.mark.parametrize('bits, top', [(12, 200), (12, 1000), (12, 4000), (16, 200), (16, 1000), (16, 4000), (16, 16000), (16, 60000)])
    def test_the_same_numbers_are_the_same_film_in_a_png(self, tmp_path, photo, bits, top):
        "10 bits in a DICOM file that speaks of 16 came out black."
        numbers = (RAMP/4095*top).round().astype(np.uint16)
        Image.fromarray(numbers).save(tmp_path/'a.png')
        film = read_film(tmp_path/'a.png')
        for tags in ({}, dict(RescaleSlope=1, RescaleIntercept=0), dict(PixelPaddingValue=2**bits - 1)):
            read = read_film(dicom(tmp_path/'a.dcm', np.where(RAMP == 4095, 2**bits - 1, numbers) if 'PixelPaddingValue' in tags else numbers, BitsStored=bits, HighBit=bits - 1, PhotometricInterpretation=photo, **tags))
            shown = (RAMP < 4095) | ('PixelPaddingValue' not in tags)
            assert np.abs(read - (film if photo == 'MONOCHROME2' else 1 - film))[shown].max() < 1e-6 and (shown | (read == 0)).all()

    def test_a_sign_that_no_pixel_needs_changes_nothing(self, tmp_path):
        "16 bits with a sign came out black, 12 bits half grey."
        for bits in (13, 16): assert (read_film(dicom(tmp_path/'a.dcm', RAMP, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=1)) == read_film(dicom(tmp_path/'b.dcm', RAMP))).all()

    @pytest.mark.parametrize('signed', [0, 1])
    @pytest.mark.parametrize('bits', [8, 9, 11, 12, 13, 15, 16])
    def test_white_is_what_the_stored_bits_can_hold_where_pixels_use_them(self, tmp_path, bits, signed):
        low, high = (-2**(bits - 1), 2**(bits - 1) - 1) if signed else (0, 2**bits - 1)
        numbers = np.linspace(low + signed, low + (high - low)*.51 + 1, 32*32).reshape(32, 32).round()
        film = read_film(dicom(tmp_path/'a.dcm', numbers, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed))
        assert (film == ((numbers - low)/(high - low)).astype(np.float32)).all()

    def test_a_rescaled_or_windowed_film_keeps_the_scale_of_its_stored_bits(self, tmp_path):
        film = dicom(tmp_path/'a.dcm', RAMP//4, RescaleSlope=2, RescaleIntercept=0)
        assert np.abs(read_film(film) - RAMP//4/4095).max() < 1e-6
        assert read_film(dicom(tmp_path/'b.dcm', RAMP//4, WindowCenter=512, WindowWidth=1024)).max() == 1

    @pytest.mark.parametrize('tags', [dict(WindowCenter=None, WindowWidth=None), dict(WindowCenter='', WindowWidth=''), dict(WindowCenter=2000), dict(WindowCenter=None, WindowWidth=900),
                                      dict(RescaleSlope=None, RescaleIntercept=None), dict(RescaleSlope=None, RescaleIntercept=0, WindowCenter=None), dict(PixelPaddingValue=None, VOILUTFunction='')])
    def test_what_is_named_and_left_empty_is_not_there(self, tmp_path, tags):
        assert (read_film(dicom(tmp_path/'a.dcm', RAMP, **tags)) == read_film(dicom(tmp_path/'b.dcm', RAMP))).all()

    def test_what_is_left_empty_beside_a_window_or_a_padding(self, tmp_path):
        window, padding = dict(WindowCenter=2000, WindowWidth=900), dict(PixelPaddingValue=200)
        assert (read_film(dicom(tmp_path/'a.dcm', RAMP, VOILUTFunction='', **window)) == read_film(dicom(tmp_path/'b.dcm', RAMP, **window))).all()
        assert (read_film(dicom(tmp_path/'a.dcm', RAMP, PixelPaddingRangeLimit=None, **padding)) == read_film(dicom(tmp_path/'b.dcm', RAMP, **padding))).all()

    def test_a_window_that_a_table_replaces_is_not_asked(self, tmp_path):
        path = dicom(tmp_path/'a.dcm', RAMP, VOILUTSequence=tables(np.arange(4096), 12), WindowCenter='1234567', WindowWidth='900')
        path.write_bytes(path.read_bytes().replace(b'1234567', b'nothing'))
        assert np.abs(read_film(path) - RAMP/4095).max() < 1e-6

    @pytest.mark.parametrize('photo', ['MONOCHROME1', 'MONOCHROME2'])
    def test_padding_is_black(self, tmp_path, photo):
        film = read_film(dicom(tmp_path/'a.dcm', RAMP.clip(200), PhotometricInterpretation=photo, PixelPaddingValue=200, PixelPaddingRangeLimit=300))
        assert (film[RAMP <= 300] == 0).all() and film[RAMP > 300].min() >= (0 if photo == 'MONOCHROME1' else 300/4095)

    @pytest.mark.parametrize('name', ['PixelSpacing', 'ImagerPixelSpacing', 'PixelAspectRatio'])
    def test_pixels_become_square_and_truth_goes_with_them(self, tmp_path, name):
        path = dicom(tmp_path/'a.dcm', RAMP, **{name: [2, 1]})
        assert read_film(path).shape == (64, 32)
        row = types.SimpleNamespace(path='a.dcm', shapes=json.dumps([dict(box=[0, 16, 32, 16])])) # the lower half, in the file's own pixels
        truth = data.load_row(row, tmp_path)['truth']
        assert truth.shape == (64, 32) and truth[33:].all() and not truth[:31].any()

    @pytest.mark.parametrize('tags, words', [(dict(PhotometricInterpretation='PALETTE COLOR'), 'colour'), (dict(PixelSpacing=[0, 0]), 'claims pixels of'), (dict(PixelSpacing=[9, 1]), 'claims pixels of'),
                                             (dict(WindowCenter=0, WindowWidth=0), 'Window Width'), (dict(BitsStored=0), 'Bits Stored'), (dict(Rows=33), 'a.dcm'), (dict(Rows=31), '64 bytes more'), (dict(Columns=30), 'more than 30 x 32'), (dict(Rows=0), 'no picture'), (dict(Rows=60000, Columns=60000), 'claims 3,600,000,000')])
    def test_nonsense_is_refused(self, tmp_path, tags, words):
        with pytest.raises(LazysegError, match=words): read_film(dicom(tmp_path/'a.dcm', RAMP, **tags))

    def test_packed_as_a_whole_is_refused_before_it_is_unpacked(self, tmp_path):
        pydicom = pytest.importorskip('pydicom')
        ds = pydicom.dcmread(dicom(tmp_path/'a.dcm', RAMP))
        ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        ds.save_as(tmp_path/'b.dcm')
        for cut in (0, 132): # without the mark of DICOM, too
            (tmp_path/'c.dcm').write_bytes((tmp_path/'b.dcm').read_bytes()[cut:])
            with pytest.raises(LazysegError, match='packed as a whole'): read_film(tmp_path/'c.dcm')

    def test_a_film_without_the_mark_of_dicom(self, tmp_path):
        whole = dicom(tmp_path/'a.dcm', RAMP).read_bytes()
        (tmp_path/'b.dcm').write_bytes(whole[132:]) # as some devices write it
        assert (read_film(tmp_path/'b.dcm') == read_film(tmp_path/'a.dcm')).all()
        at = whole.index(b'\x08\0', 132)
        for name, raw in (('bare.dcm', whole[at:]), ('text.dcm', b'a letter, which somebody called a film'*20), ('short.dcm', b'x'), ('mark.dcm', whole[:132] + whole[at:])):
            (tmp_path/name).write_bytes(raw)
            with pytest.raises(LazysegError, match='is no DICOM film') as e: read_film(tmp_path/name)
            assert 'force' not in str(e.value) and name in str(e.value)

    def test_a_header_without_a_film(self, tmp_path):
        pydicom = pytest.importorskip('pydicom')
        ds = pydicom.dcmread(dicom(tmp_path/'a.dcm', RAMP))
        del ds.PixelData
        ds.save_as(tmp_path/'a.dcm')
        for cut in (0, 132):
            (tmp_path/'b.dcm').write_bytes((tmp_path/'a.dcm').read_bytes()[cut:])
            with pytest.raises(LazysegError, match='holds no picture'): read_film(tmp_path/'b.dcm')

    def test_compressed_films_read_the_same(self, tmp_path):
        pydicom = pytest.importorskip('pydicom')
        ds = pydicom.dcmread(dicom(tmp_path/'a.dcm', RAMP))
        ds.compress(pydicom.uid.RLELossless)
        ds.save_as(tmp_path/'b.dcm')
        assert (read_film(tmp_path/'a.dcm') == read_film(tmp_path/'b.dcm')).all()

    def resaved(self, path, order='<', **tags):
        "The same film with its numbers' bytes in another order, and other tags."
        pydicom = pytest.importorskip('pydicom')
        ds = pydicom.dcmread(path)
        pixels = ds.pixel_array
        for table in ds.get('VOILUTSequence', []): table.add_new((0x0028, 0x3006), 'OW', np.array(table.LUTData).astype(order + 'u2').tobytes())
        meta, big = pydicom.dataset.FileMetaDataset(ds.file_meta), order == '>'
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian if big else pydicom.uid.ExplicitVRLittleEndian
        out = pydicom.dataset.FileDataset('', dict(ds.items()), file_meta=meta, preamble=bytes(128), is_implicit_VR=False, is_little_endian=not big)
        out.add_new((0x7FE0, 0x0010), 'OW', pixels.astype(order + pixels.dtype.str[1:]).tobytes())
        for k, v in tags.items(): setattr(out, k, v)
        out.save_as(path.with_suffix('.other'), enforce_file_format=True)
        return path.with_suffix('.other')

    @pytest.mark.parametrize('tags', [{}, dict(PixelRepresentation=1), dict(WindowCenter=2000, WindowWidth=900), dict(VOILUTSequence=True)])
    def test_bytes_in_the_other_order_are_the_same_film(self, tmp_path, tags):
        "Such pixels were read as noise."
        if 'VOILUTSequence' in tags: tags = dict(VOILUTSequence=tables(np.arange(4096)[::-1]*16, 16))
        path = dicom(tmp_path/'a.dcm', RAMP - 2048*('PixelRepresentation' in tags), **tags)
        assert read_film(path).std() > .1 and (read_film(self.resaved(path, '>')) == read_film(path)).all()

    @pytest.mark.parametrize('signed', [0, 1])
    @pytest.mark.parametrize('top', [15, 13, 11])
    def test_numbers_at_the_upper_end_of_their_bytes_are_the_same_film(self, tmp_path, signed, top):
        "12 bits, of which the highest is the 15th, lost their upper four."
        values = RAMP.astype(np.int64) - 2048*signed
        film = read_film(dicom(tmp_path/'a.dcm', values, PixelRepresentation=signed))
        for around in (0, 2**(top - 11) - 1, 1 << top + 1 & 0xffff): # what else is in those 16 bits is no part of the number
            moved = read_film(dicom(tmp_path/'b.dcm', values*2**(top - 11) + around, PixelRepresentation=signed, HighBit=top))
            assert (moved == film).all(), around
        assert (read_film(self.resaved(tmp_path/'a.dcm', HighBit=15)) == film).all() # a header that is wrong about its pixels

    def test_signed_films(self, tmp_path):
        film = read_film(dicom(tmp_path/'a.dcm', (RAMP - 2048).astype('<i2'), PixelRepresentation=1))
        assert np.abs(film - RAMP/4095).max() < 1e-4


class TestPictures:
    def test_a_deep_tiff_in_which_zero_is_white_is_turned_over(self, tmp_path):
        "Pillow does this for 8 bits and not for 16."
        ramp = (RAMP*16).astype(np.uint16)
        Image.fromarray(ramp.max() - ramp).save(tmp_path/'deep.tif', tiffinfo={262: 0})
        Image.fromarray((RAMP//16).astype(np.uint8)).save(tmp_path/'8.tif', tiffinfo={262: 0}) # turned over on its way out, too
        assert np.abs(read_film(tmp_path/'deep.tif') - RAMP/4095).max() < .01 and np.abs(read_film(tmp_path/'8.tif') - RAMP/4095).max() < .01

    def test_negative_numbers_are_refused(self, tmp_path):
        Image.fromarray((RAMP - 100).astype(np.int32)).save(tmp_path/'a.tif')
        with pytest.raises(LazysegError, match='black is not known'): read_film(tmp_path/'a.tif')

    @pytest.mark.parametrize('kind, said', [('i1', 'from -128 to 127'), ('f2', 'fractions of 16 or 64 bits'), ('f8', 'fractions of 16 or 64 bits'), ('f4', 'white is not known'), ('u4', 'above 2,147,483,647')])
    def test_numbers_of_a_kind_that_is_not_read_are_named(self, tmp_path, kind, said):
        tifffile.imwrite(tmp_path/'a.tif', (RAMP/4095*(1 if 'f' in kind else np.iinfo(kind).max)).astype(kind))
        with pytest.raises(LazysegError, match=f'a.tif .*{said}'): read_film(tmp_path/'a.tif')

    @pytest.mark.parametrize('planes', ['separate', 'contig'])
    @pytest.mark.parametrize('kind', ['u1', 'u2'])
    def test_colours_in_planes(self, tmp_path, planes, kind):
        grey = (RAMP/4095*np.iinfo(kind).max).astype(kind)
        tifffile.imwrite(tmp_path/'a.tif', np.stack([grey]*3, 0 if planes == 'separate' else -1), photometric='rgb', planarconfig=planes)
        if (planes, kind) == ('separate', 'u2'): # Pillow reads these askew
            with pytest.raises(LazysegError, match='read askew'): read_film(tmp_path/'a.tif')
        else: assert np.abs(read_film(tmp_path/'a.tif') - RAMP/4095).max() < .01

    @pytest.mark.parametrize('shown', ['miniswhite', 'minisblack'])
    def test_a_mask_of_one_bit_means_its_ones(self, tmp_path, shown):
        "tifffile writes a mask of yes and no so that yes is shown as black."
        mask = RAMP > 3000
        tifffile.imwrite(tmp_path/'a.tif', mask, photometric=shown)
        assert (read_mask(tmp_path/'a.tif') == mask).all()

    @pytest.mark.parametrize('kind', ['TIFF', 'PNG', 'WEBP'])
    def test_several_pictures_in_one_file_are_refused(self, tmp_path, kind):
        pages = [Image.fromarray(np.full((32, 32, 3), v, np.uint8)) for v in (10, 200)]
        pages[0].save(tmp_path/'a.png', kind, save_all=True, append_images=pages[1:])
        with pytest.raises(LazysegError, match='holds 2 pictures'): read_film(tmp_path/'a.png')

    def test_one_hurt_bit_in_a_png_is_found(self, tmp_path):
        picture(tmp_path/'a.png')
        whole = (tmp_path/'a.png').read_bytes()
        for at in range(45, len(whole) - 16, 37):
            hurt = bytearray(whole); hurt[at] ^= 1
            (tmp_path/'b.png').write_bytes(hurt)
            with pytest.raises(LazysegError, match=r'b\.png'): read_film(tmp_path/'b.png')

    @pytest.mark.parametrize('name, head', [('a.png', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n'), ('a.png', b'GIF89a@\0@\0\x80\0\0'), ('a.jpg', b'%PDF-1.7\n')])
    def test_formats_that_start_programs_are_not_tried(self, tmp_path, monkeypatch, name, head):
        monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: pytest.fail('a program was started'))
        (tmp_path/name).write_bytes(head + b'x'*2000)
        with pytest.raises(LazysegError, match='none of PNG, JPEG, BMP, TIFF, WEBP and DICOM'): read_film(tmp_path/name)

    @pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP'])
    def test_a_picture_that_is_called_dicom_is_read_as_what_it_is(self, tmp_path, kind):
        picture(tmp_path/'a.dcm', kind=kind), picture(tmp_path/'a.png', kind=kind)
        assert (read_film(tmp_path/'a.dcm') == read_film(tmp_path/'a.png')).all() and (read_mask(tmp_path/'a.dcm') == read_mask(tmp_path/'a.png')).all()

    def test_what_is_not_a_file(self, tmp_path):
        (tmp_path/'folder.png').mkdir()
        with pytest.raises(LazysegError, match='not a file'): read_film(tmp_path/'folder.png')
        with pytest.raises(LazysegError, match='not there'): read_film(tmp_path/'gone.png')
        if hasattr(os, 'mkfifo'):
            os.mkfifo(tmp_path/'pipe.png') # opening it would wait for ever
            with pytest.raises(LazysegError, match='not a file'): read_film(tmp_path/'pipe.png')

    def test_every_way_to_turn(self, tmp_path):
        rng = np.random.default_rng(0)
        film = rng.integers(0, 256, (32, 24)).astype(np.uint8)
        for way in range(1, 9):
            stored = {1: film, 2: film[:, ::-1], 3: film[::-1, ::-1], 4: film[::-1], 5: film.T, 6: np.rot90(film), 7: film[::-1, ::-1].T, 8: np.rot90(film, -1)}[way]
            note = Image.Exif(); note[274] = way
            for deep in (False, True):
                Image.fromarray(np.ascontiguousarray(stored.astype(np.uint16)*257 if deep else stored)).save(tmp_path/'a.png', exif=note)
                assert np.abs(read_film(tmp_path/'a.png')*255 - film).max() < .01, (way, deep)


class TestMasks:
    REGIONS = np.kron(np.arange(64).reshape(8, 8), np.ones((8, 8), int)) # 64 squares of 8 x 8 pixels, numbered from 0

    @pytest.mark.parametrize('kind', ['png', 'bmp', 'tif', '16 bit png', '32 bit tif', 'colour png', 'palette png', 'dicom'])
    @pytest.mark.parametrize('n', [1, 2, 3, 4, 5, 32])
    def test_a_mask_may_number_its_regions(self, tmp_path, kind, n):
        "The first of four was lost."
        numbers = self.REGIONS*(self.REGIONS <= n)
        ending, deep = kind.split()[-1], dict({'16': np.uint16, '32': np.int32}).get(kind[:2], np.uint8)
        if kind == 'dicom': path = dicom(tmp_path/'a.dcm', numbers)
        else:
            image = Image.fromarray(numbers.astype(deep))
            if kind == 'colour png': image = image.convert('RGB')
            if kind == 'palette png': image = image.convert('P')
            path = tmp_path/f'a.{ending}'; image.save(path)
        assert (read_mask(path) == (numbers > 0)).all()

    @pytest.mark.parametrize('values, white', [((0, 10, 40, 100), 40), ((0, 1, 33), 33), ((0, 63, 64, 255), 64)])
    def test_greys_are_no_numbers_of_regions(self, tmp_path, values, white):
        mask = np.array(values)[self.REGIONS % len(values)].astype(np.uint8)
        Image.fromarray(mask).save(tmp_path/'a.png')
        assert (read_mask(tmp_path/'a.png') == (mask >= white)).all()

    @pytest.mark.parametrize('kind, how', [('JPEG', {}), ('TIFF', dict(compression='jpeg')), ('WEBP', {})])
    def test_the_noise_of_packing_is_no_region(self, tmp_path, kind, how):
        "Which picture a file holds is seen from its bytes, whatever its name says."
        mask = np.where(self.REGIONS % 2, 20, 0).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path/'a.png', kind, **how)
        film = read_film(tmp_path/'a.png')
        assert (read_mask(tmp_path/'a.png') == (film > film.max()/4)).all()

    @pytest.mark.parametrize('yes', [1, 255])
    def test_yes_and_no_stay_what_they_were(self, tmp_path, yes):
        mask = (self.REGIONS % 2*yes).astype(np.uint8)
        for ending in ('png', 'bmp', 'tif', 'jpg', 'webp'):
            Image.fromarray(mask).save(tmp_path/f'a.{ending}')
            film = read_film(tmp_path/f'a.{ending}')
            assert (read_mask(tmp_path/f'a.{ending}') == (film > film.max()/4)).all(), ending
            if ending in ('png', 'bmp', 'tif'): assert (read_mask(tmp_path/f'a.{ending}') == (mask > 0)).all()


@pytest.mark.parametrize('name, stem', [('a.png', 'a'), ('A.B.JPEG', 'A.B'), ('a', 'a'), ('1.2.840.113619.2.5.10.0', '1.2.840.113619.2.5.10.0'), ('1.2.3.dcm', '1.2.3'), ('scan.001', 'scan.001'), ('.hidden', '.hidden')])
def test_a_films_name_without_its_ending(tmp_path, name, stem):
    assert film_stem(name) == film_stem(tmp_path/name) == stem
    (tmp_path/name).write_bytes(bytes(128) + b'DICM')
    assert is_film(tmp_path/name) == (not name.startswith('.'))


@pytest.mark.parametrize('view', ['film', 'crop', 'aligned', 'lungs'])
def test_a_twin_differs_from_its_film_where_the_disease_is_and_nowhere_else(view):
    "Films were levelled and their twins were not, so they differed all over."
    rng = np.random.default_rng(0)
    film, lungs, truth = rng.random((80, 80), np.float32)*.3 + .4, np.zeros((80, 80), bool), np.zeros((80, 80), bool)
    lungs[10:70, 10:35] = lungs[10:70, 45:70] = truth[30:45, 15:30] = True
    twin = np.where(truth, film - .2, film)
    seen, alone = (make_view(parts, 32, 32, view) for parts in (dict(film=film, twin=twin, lungs=lungs, truth=truth), dict(film=film, lungs=lungs)))
    differ = seen['film'].astype(int) - seen['twin']
    assert (seen['film'] == alone['film']).all() and differ[seen['truth'] > 0].mean() > (50 if view == 'film' else 100)*.9
    far = np.ones((32, 32), bool); far[(rows := np.flatnonzero(seen['truth'].any(1)))[0] - 2:rows[-1] + 3, (columns := np.flatnonzero(seen['truth'].any(0)))[0] - 2:columns[-1] + 3] = False
    assert far.sum() > 500 and not differ[far].any()


class TestTables:
    def test_paths_written_on_windows(self, tmp_path):
        table = table_of(tmp_path/'films')
        table.path, table.lungs = 'films\\' + table.path, 'films\\' + table.lungs.str.replace('/', '\\')
        table.to_csv(tmp_path/'t.csv', index=False)
        films = get_films(get_source('table', tmp_path/'t.csv'), 16, view='crop')
        assert len(films) == 12 and films.lungs.any() and films.table.path[0] == 'films/0.png'

    def test_a_name_with_a_blank_is_the_same_patient(self, tmp_path):
        table = table_of(tmp_path).assign(patient=['p1', 'p2', 'p1 ', 'p2', ' p1', 'p2', 'p1', 'p3', 'p4', 'p5', 'p6', 'p7'])
        assert get_source('table', table, root=tmp_path).table.patient.nunique() == 7

    def test_a_damaged_path_is_named_and_a_long_one_cut(self, tmp_path):
        "Found by tests/fuzz.py: a zero byte stopped the cache with a ValueError, and a cell of 5,000 letters filled the screen."
        table = table_of(tmp_path)
        with pytest.raises(LazysegError, match='zero byte'): get_source('table', table.assign(path=['a\0.png', *table.path[1:]]), root=tmp_path)
        with pytest.raises(LazysegError, match='listed twice') as e: get_source('table', table.assign(path='x'*5000), root=tmp_path)
        assert len(str(e.value)) < 300
        with pytest.raises(LazysegError, match='carries the label') as e: get_source('table', table, root=tmp_path, disease='y'*5000)
        assert len(str(e.value)) < 600

    @pytest.mark.parametrize('between', [';', '\t', ','])
    def test_tables_as_excel_writes_them(self, tmp_path, between):
        table_of(tmp_path).assign(note='Bürger').to_csv(tmp_path/'t.csv', index=False, sep=between, encoding='utf-8-sig')
        source = get_source('table', tmp_path/'t.csv')
        assert len(source) == 12 and source.table.note[0] == 'Bürger'

    @pytest.mark.parametrize('raw, words', [('path,labels\nä.png,x\n'.encode('latin-1'), 'CSV UTF-8'), ('path,labels\n'.encode('utf-16'), 'no rows'), ('path,labels\n'.encode('utf-16')[:-1], 'UTF-8'), (b'', 'No columns'), (b'path,labels\n"a.png,x', 'EOF'),
                                            (b'path,labels\na,b\na,b,c,d\n', 'Expected 2'), (b'path,path,labels\na,b,c\n', 'no rows|labels|patient|label')])
    def test_what_is_no_table(self, tmp_path, raw, words):
        (tmp_path/'t.csv').write_bytes(raw)
        with pytest.raises(LazysegError, match=words), warnings.catch_warnings(): warnings.simplefilter('ignore'); get_source('table', tmp_path/'t.csv')

    def test_a_comma_too_many_does_not_shift_the_columns(self, tmp_path):
        (tmp_path/'t.csv').write_text('path,labels\n1.png,Edema,\n2.png,No Finding,\n')
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); assert read_csv(tmp_path/'t.csv').path.tolist() == ['1.png', '2.png']

    def test_packed_tables_have_a_limit_and_stay_where_they_are(self, tmp_path, monkeypatch):
        text = 'path,labels\n' + 'a.png,Edema\n'*100
        (tmp_path/'t.csv.gz').write_bytes(gzip.compress(text.encode()))
        with zipfile.ZipFile(tmp_path/'t.csv.zip', 'w') as z: z.writestr('../../up.csv', text)
        for name in ('t.csv.gz', 't.csv.zip'): assert len(read_csv(tmp_path/name)) == 100
        assert not list(tmp_path.parent.glob('up.csv')) and not list(tmp_path.parent.parent.glob('up.csv'))
        monkeypatch.setattr(data, 'BIGGEST_TEXT', 1000)
        for name in ('t.csv.gz', 't.csv.zip'):
            with pytest.raises(LazysegError, match='larger than 1,000 bytes'): read_text(tmp_path/name)
        (tmp_path/'cut.csv.gz').write_bytes((tmp_path/'t.csv.gz').read_bytes()[:30])
        with pytest.raises(LazysegError, match='cut.csv.gz'): read_text(tmp_path/'cut.csv.gz')

    @pytest.mark.parametrize('where', ["path.to_csv('x')", "@pd.read_csv('x')", "__import__('os')", "[o for o in path]", "path if 1 else 2", "(lambda: 1)()", "labels.values.tofile('x')", "path[0] == 'a'", "", "("*3000])
    def test_a_condition_does_nothing_but_compare(self, tmp_path, monkeypatch, where):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LazysegError, match='where='): pick_rows(pd.DataFrame(dict(path=['a'], labels=['b'])), where)
        assert not list(tmp_path.iterdir())

    def test_two_columns_of_one_name(self):
        with pytest.raises(LazysegError, match='two columns'): data.name_columns(pd.DataFrame([['a', 'b', 'c']], columns=['path', 'path', 'labels']))

    def test_masks_that_could_belong_to_two_films(self, tmp_path):
        for kind in ('healthy', 'diseased'): picture(tmp_path/kind/'1.png'); picture(tmp_path/kind/'2.png')
        assert len(get_source('folder', tmp_path)) == 4 # without masks there is nothing to mix up
        picture(tmp_path/'truth'/'1.png', lungs=True)
        with pytest.raises(LazysegError, match="Two films are named '1'"): get_source('folder', tmp_path)
        table = table_of(tmp_path/'films')
        for o in ('a', 'b'): picture(tmp_path/'masks'/o/'1.png', lungs=True)
        with pytest.raises(LazysegError, match="Two masks are named '1'"): get_source('table', table, root=tmp_path/'films', truth=('masks', tmp_path/'masks'))

    @pytest.mark.parametrize('shape', [dict(box=[1, 2, 3]), dict(box=['a', 1, 1, 1]), dict(polygon=[[1, 1], [2, 2]]), dict(polygon=[1, 2, 3]), dict(runs=[5]), dict(runs=[-5, 3]), dict(runs=[1500, 300]), dict(runs=[0, 10], size=[10**6, 10**6]),
                                       dict(box=[0, 0, 9, 9], size=[0, 0]), dict(box=[0, 0, 1e308, 9]), dict(box=[float('nan')]*4), dict(box=[500, 500, 9, 9]), dict(box=[-50, 0, 9, 9]), {}, None, 'x', 7])
    def test_shapes_that_can_not_be(self, shape):
        with pytest.raises(LazysegError, match="can't be drawn"): draw_shapes([shape], 40, 40)

    def test_a_bad_shape_names_its_film(self, tmp_path):
        table = table_of(tmp_path).assign(shapes=['[{"box": [999, 999, 5, 5]}]' if i == 3 else '' for i in range(12)])
        with pytest.raises(LazysegError, match=r'3\.png.*off the film'): get_films(get_source('table', table, root=tmp_path), 16)

    def test_a_lung_mask_of_one_lung_names_its_film(self, tmp_path):
        table = table_of(tmp_path)
        Image.fromarray((np.arange(32)[None] < 1).repeat(40, 0).astype(np.uint8)*255).save(tmp_path/'lungs'/'4.png')
        Image.fromarray(np.zeros((40, 32), np.uint8)).save(tmp_path/'lungs'/'5.png')
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            films = get_films(get_source('table', table, root=tmp_path), 16, view='lungs', bad='skip')
        assert '5.png' not in set(films.table.path) and any('5.png' in str(o.message) for o in said)

    def test_own_aspect_does_not_stumble_over_a_bad_film(self, tmp_path):
        table = table_of(tmp_path)
        (tmp_path/'3.png').write_bytes(b'')
        source = get_source('table', table, root=tmp_path)
        with pytest.warns(UserWarning, match='1 of 12'): assert get_films(source, 40, aspect=None, bad='skip').film.shape == (11, 40, 32)
        with pytest.raises(LazysegError, match=r'3\.png'): get_films(source, 40, aspect=None)

    @pytest.mark.parametrize('how', [dict(size='64'), dict(size=64.), dict(size=16, aspect='1'), dict(size=16, aspect=float('nan'))])
    def test_settings_of_the_wrong_kind(self, tmp_path, how):
        with pytest.raises(LazysegError, match='size=|aspect='): get_films(get_source('table', table_of(tmp_path), root=tmp_path), **how)

    def test_batch_size(self, tmp_path):
        films = get_films(get_source('table', table_of(tmp_path), root=tmp_path), 16)
        for bs in (0, -1, '8', 2.5):
            with pytest.raises(LazysegError, match='batch_size'): unpaired_loaders(films, bs, device='cpu')


class TestCache:
    def test_a_kill_between_the_last_renames_leaves_no_black_films(self, tmp_path, monkeypatch):
        source = get_source('table', table_of(tmp_path), root=tmp_path)
        whole = data.whole_file
        def die(path):
            if Path(path).name == 'rows.npy': raise KeyboardInterrupt
            return whole(path)
        monkeypatch.setattr(data, 'whole_file', die)
        with pytest.raises(KeyboardInterrupt): get_films(source, 16)
        monkeypatch.setattr(data, 'whole_file', whole)
        films = get_films(source, 16)
        assert films.film[:].mean((1, 2)).min() > 50 and films.lungs[:].any((1, 2)).all()

    def test_a_full_disk_is_said_before_it_is_full(self, tmp_path, monkeypatch):
        monkeypatch.setattr(data.shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=1000))
        with pytest.raises(LazysegError, match='LAZYSEG_CACHE'): get_films(get_source('table', table_of(tmp_path), root=tmp_path), 16)

    def test_threads_read_the_same_as_one(self, tmp_path):
        source = get_source('table', table_of(tmp_path, 40), root=tmp_path)
        one, many = (data.cached_parts(source, 16, width, dict(view='film'), 'stop', threads) for width, threads in ((16, 1), (24, 8)))
        assert (many[0]['film'] == data.read_all(source, 16, 24, {})['film']).all() and (one[0]['film'] == data.read_all(source, 16, 16, {})['film']).all()

    def test_two_processes_fill_one_cache(self, tmp_path):
        table_of(tmp_path/'films', 60).to_csv(tmp_path/'films'/'t.csv', index=False)
        script = f"from lazyseg.data import *; print(int(get_films(get_source('table', r'{tmp_path/'films'/'t.csv'}'), 16).film[:].sum()))"
        env = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path))
        runs = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', script], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        sums = [p.communicate()[0].strip() for p in runs]
        assert sums[0] == sums[1] and int(sums[0]) > 0 and len(list((tmp_path/'cache'/'films').iterdir())) == 1


class TestDownload:
    "Against the real kagglehub, from which every network is taken away."
    @pytest.fixture
    def kaggle(self, tmp_path, monkeypatch):
        def cut_off(*args, **more): raise requests.exceptions.ConnectionError('no network')
        requests, kagglehub = pytest.importorskip('requests'), pytest.importorskip('kagglehub')
        monkeypatch.setattr(requests.sessions.Session, 'send', cut_off)
        monkeypatch.setenv('KAGGLEHUB_CACHE', str(tmp_path/'kaggle'))
        return kagglehub

    def kept_before(self, tmp_path, version, whole=True):
        "Six films where kagglehub keeps what it has fetched, packed as Kaggle packs this set."
        home = tmp_path/'kaggle'/'datasets'/'paultimothymooney'/'chest-xray-pneumonia'
        for kind, name in (('NORMAL', 'IM-0{:03}-0001'), ('PNEUMONIA', 'person{}_virus_1')):
            for i in range(3): picture(home/'versions'/str(version)/'chest_xray'/'train'/kind/(name.format(i) + '.jpeg'), i + version, kind='JPEG')
        if whole: (home/f'{version}.complete').touch()
        return home/'versions'/str(version)

    def test_without_a_network_what_was_fetched_is_found(self, tmp_path, kaggle):
        self.kept_before(tmp_path, 9), self.kept_before(tmp_path, 11, whole=False)
        newest = self.kept_before(tmp_path, 10)
        with pytest.warns(UserWarning, match='versions/10, fetched before'): source = get_source('pneumonia', split='patients')
        assert len(source) == 6 and newest in (source.root, *source.root.parents) and len(get_films(source, 16)) == 6

    def test_the_newest_is_asked_for_and_taken_where_it_lies(self, tmp_path, kaggle, monkeypatch):
        import inspect
        folder, real, asked = self.kept_before(tmp_path, 2), kaggle.dataset_download, []
        def answered(*args, **more): # the one thing a network is needed for: which version is the newest
            handle = inspect.signature(real).bind(*args, **more).arguments['handle']
            asked.append(handle)
            return real(f'{handle}/versions/2')
        monkeypatch.setattr(kaggle, 'dataset_download', answered)
        assert data.download('pneumonia') == folder and asked == ['paultimothymooney/chest-xray-pneumonia']
        from kagglehub.handle import parse_dataset_handle
        assert [str(parse_dataset_handle(h)) for h in data.KAGGLE.values()] == list(data.KAGGLE.values())

    def test_a_refusal_says_how_to_do_it_by_hand(self, kaggle):
        with pytest.raises(LazysegError, match=r'no network.*nih-chest-xrays/sample.*give its folder as data='): get_source('nih')


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='Linux')
def test_locale_c_one_core_little_memory_read_only_films(tmp_path):
    "Names with letters beyond ASCII, in the locale that knows none; one core; 4 GB; films that can't be written to."
    folder = tmp_path/'Röntgen bilder'
    table = table_of(folder).assign(note='Bürger')
    (folder/'5.png').write_bytes(b'')
    table.to_csv(folder/'tabelle ä.csv', index=False)
    for p in folder.rglob('*.png'): p.chmod(stat.S_IRUSR)
    script = textwrap.dedent(f"""
        import os, resource
        os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        import warnings; warnings.simplefilter('ignore')
        from lazyseg.data import get_films, get_source, unpaired_loaders
        films = get_films(get_source('table', {str(folder/'tabelle ä.csv')!r}, split='patients'), 16, bad='skip')
        batch = unpaired_loaders(films, 2, device='cpu').one_batch()
        print(len(films), tuple(batch[0].shape))
    """)
    env = {k: v for k, v in os.environ.items() if not k.startswith('LC_') and k != 'LANG'} | dict(LC_ALL='C', PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS='1')
    ran = subprocess.run([sys.executable, '-c', script], env=env, capture_output=True, text=True, encoding='utf-8')
    assert ran.stdout.strip() == '11 (2, 1, 16, 16)', ran.stderr[-2000:]
