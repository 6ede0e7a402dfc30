"""Do the tests see a wrong number? `python tests/mutations.py` puts one fault at a time into a copy of the library and runs the test that
has to fail for it. All is well when that test passes on the library as it is and fails on every faulty copy.

A fault is a line of `FAULTS`: what it is, the module, the text that is replaced, what by, and the test that must notice. The text must
occur exactly once, so that a fault that no longer fits the code is an error and not silently left out."""
import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.pop('LAZYSEG_CACHE', ROOT/'data'/'cache')).resolve()
D, I, F = 'tests/test_data.py::', 'tests/test_data_input.py::', 'tests/test_data_numbers.py::'
E, T, N = 'tests/test_evaluation.py::', 'tests/test_thresholding.py::', 'tests/test_training.py::'
S, P, L, X = 'tests/test_segmenter.py::', 'tests/test_phantom.py::', 'tests/test_panel.py::', 'tests/test_exercises.py::'
M = 'tests/test_models.py::'

FAULTS = [
    # masks and films
    ('truth is mirrored', 'film', "        out[name] = to_bytes(small) if name in ('film','twin') else (small >= .5).astype(np.uint8)\n",
     "        out[name] = to_bytes(small) if name in ('film','twin') else (small >= .5).astype(np.uint8)[:, ::-1]\n", F + 'test_masks_lie_where_the_film_shows_them'),
    ('truth is upside down', 'data', "mask |= _draw_shape(shape, height, width)", "mask |= _draw_shape(shape, height, width)[::-1]", F + 'test_shapes_lie_where_they_were_drawn'),
    ('rows and columns of a polygon change places', 'data', "corners[:, ::-1]*[height/h, width/w] - .5", "corners*[height/h, width/w] - .5", F + 'test_shapes_lie_where_they_were_drawn'),
    ('truth counts in the wrong size', 'data', "h, w = shape.get('size') or (height, width)", "h, w = height, width", D + 'test_outlined_sources'),
    ('runs go along the rows', 'data', "flat.reshape(width, height).T", "flat.reshape(height, width)", F + 'test_shapes_lie_where_they_were_drawn'),
    ("SIIM's starts count from the film's beginning", 'data', "starts = pairs.sum(1).cumsum() - pairs[:,1]", "starts = pairs[:,0]", F + 'test_siim_counts_from_the_last_run'),
    ('a mask is shrunk by leaving pixels out', 'data', "resize(mask, *parts['film'].shape) >= .5", "mask[:parts['film'].shape[0], :parts['film'].shape[1]]", D + 'test_mask_folder_and_mask_of_another_size'),
    ("a film's mask is its neighbour's", 'data', "found = keys.map({p.stem: str(p.resolve()) for p in files})", "found = keys.map({p.stem: str(files[i-1].resolve()) for i, p in enumerate(files)})", F + 'test_every_film_has_its_own_mask'),
    ('MONOCHROME1 stays as it is', 'film', "if data.PhotometricInterpretation == 'MONOCHROME1': grey = 1 - grey", "", D + 'test_dicom'),
    ('the window is left out', 'film', "apply_windowing(units, data) if", "units if", D + 'test_dicom'),
    ('rescaling is left out', 'film', "apply_rescale(values, data) if", "values if", D + 'test_dicom'),
    ('EXIF is left out', 'film', "ImageOps.exif_transpose(image, in_place=True)", "image.load()", I + 'TestPictures::test_every_way_to_turn'),
    ('signed bytes of a TIFF are taken', 'film', "if bits == 8 and 2 in (tags.get(339) or ()):", "if False:", I + 'TestPictures::test_numbers_of_a_kind_that_is_not_read_are_named'),
    ('colours in planes are read askew', 'film', "if bits > 8 and tags.get(277, 1) > 1 and tags.get(284, 1) == 2:", "if False:", I + 'TestPictures::test_colours_in_planes'),
    ('a mask of one bit is turned over', 'film', "    if _shows_ones_black(path): mask = 1 - mask\n", "", I + 'TestPictures::test_a_mask_of_one_bit_means_its_ones'),
    ('16 bits are taken for 12', 'film', "for bits in (8, 10, 12, 14, 16, 32)", "for bits in (8, 10, 12, 32)", F + 'test_sixteen_bits_are_sixteen_bits'),
    ('the outline of the lungs shows in the view', 'film', "    if view in ('aligned','lungs'):\n        hidden", "    if view == 'aligned':\n        hidden", F + 'test_the_view_hides_all_but_the_lungs'),
    ('resizing leaves pixels out', 'film', "Image.Resampling.BILINEAR, box=box", "Image.Resampling.NEAREST, box=box", F + 'test_resizing_averages_all_that_it_covers'),
    # films and tables as others write them
    ("a scanner's name loses its last number", 'film', "return path.name if path.suffix[1:].isdigit() else path.stem", "return path.stem", I + 'test_a_films_name_without_its_ending'),
    ('a condition may run what stands between backticks', 'data', "name = lambda m: m[1] or quoted.setdefault", "name = lambda m: quoted.setdefault", D + 'test_backticks_name_columns_and_may_be_part_of_strings'),
    ('numbers are compared as text', 'data', "numbers = _numbers(a), _numbers(b)", "numbers = None, None", D + 'test_a_query_compares_numbers_as_numbers_and_text_as_text'),
    ('findings joined by commas are one', 'data', "table = table.assign(labels=_part_labels(table.labels, set().union(*_asked(diseased), *_asked(healthy))))", "pass", D + 'test_findings_joined_by_commas_or_semicolons'),
    ('a folder of a patient is none', 'data', "return [name.split('__')[0] if '__' in name or not folder else folder[0] for", "return [name.split('__')[0] for", D + 'test_a_folder_in_a_folder_is_a_patient'),
    ("one patient's mask is another's", 'data', "if loose(f) or loose(m)]", "]", D + 'test_masks_of_patients_whose_films_have_the_same_names'),
    ('a mask of another shape is stretched', 'data', "if off(*film.shape) and off(", "if False and off(", D + 'test_a_mask_of_another_shape_is_refused'),
    ('two bytes are read in one order', 'film', "pixels = pixels.astype(pixels.dtype.newbyteorder('='), copy=False)", "", I + 'TestDicom::test_bytes_in_the_other_order_are_the_same_film'),
    ('numbers at the upper end of their bytes stay there', 'film', "high_up = 1 <= bits <= top < data.BitsAllocated", "high_up = False", I + 'TestDicom::test_numbers_at_the_upper_end_of_their_bytes_are_the_same_film'),
    ('a window without numbers is one', 'film', "return all(data.get(o) not in (None, '') for o in names)", "return all(o in data for o in names)", I + 'TestDicom::test_what_is_named_and_left_empty_is_not_there'),
    ('12 bits that say 16 are dark', 'film', "(0, min(int(full_scale(used)), high)) if plain", "(low, high) if plain", I + 'TestDicom::test_the_same_numbers_are_the_same_film_in_a_png'),
    ('of numbered regions only the high ones count', 'film', "return mask > (0 if numbered else mask.max()/4)", "return mask > mask.max()/4", I + 'TestMasks::test_a_mask_may_number_its_regions'),
    ('a twin is stretched by its own greys', 'film', "by=parts['film']) for o", "by=None) for o", I + 'test_a_twin_differs_from_its_film_where_the_disease_is_and_nowhere_else'),
    ('what nobody outlined is taught as healthy', 'baselines', "part(films if known.all() else films[known], split)", "part(films, split)", 'tests/test_baselines.py::test_the_unet_learns_nothing_from_films_that_nobody_outlined'),
    ('films that a model may have seen are called unseen', 'cli', "return split == 'test' and (films", "return (films", 'tests/test_cli.py::test_only_the_test_part_of_its_own_split_is_unseen_by_a_model'),
    ('a film that the model hardly sees goes unnamed', 'segmenter', "elif view == 'film' and seen < .5:", "elif view == 'film' and seen < 0:", S + 'test_a_part_of_a_film_is_named_as_one'),
    ("a copy beside NIH's films is taken for the film", 'data', "[o for o in found[name] if o.lower().split('/')[-2:-1] == ['images']] or found[name]", "found[name]", D + 'test_masks_and_copies_beside_nih_films_are_not_taken_for_them'),
    ('a lung mask that is missing tells the classes apart', 'audit', " and (films.lungs[:] > 0).any((1, 2)).all()", "", 'tests/test_data_audit.py::test_lung_masks_of_some_films_tell_nothing_of_a_shortcut'),
    ('a packing that nothing unpacks is damage', 'film', "if 'missing dependencies' not in str(e): raise", "raise", I + 'TestDicom::test_a_packing_that_nothing_here_unpacks_is_named'),
    # domains and splits
    ('the domains change places', 'data', "return table.assign(diseased=sick)[sick | well]", "return table.assign(diseased=well)[sick | well]", F + 'test_the_diseased_are_diseased'),
    ('healthy and diseased change places in a batch', 'data', "np.asarray(rows, np.int32) for rows in (healthy, diseased)", "np.asarray(rows, np.int32) for rows in (diseased, healthy)", F + 'test_a_batch_is_healthy_then_diseased'),
    ("'without' is not heard", 'data', "and not (s & unwanted)", "", F + 'test_without_means_without'),
    ('films are split, not patients', 'data', "dict(patient=table.patient.astype(str).to_numpy(), rarest=rarest)", "dict(patient=[f'{p}-{i}' for i, p in enumerate(table.patient)], rarest=rarest)", F + 'test_no_patient_is_in_two_parts'),
    ('a leaking official split is kept', 'data', "if (spread > 1).any():\n        films", "if False:\n        films", D + 'test_kaggle_pneumonia_layout'),
    ('a clean official split is dealt anew', 'data', "try: own = official_split(table)", "return by_patient()\n    try: own = official_split(table)", D + 'test_nih_layouts'),
    ('test films are trained on', 'data', "parts = [(films.table.split == o).to_numpy() for o in ('train','valid')]", "parts = [(films.table.split != 'none').to_numpy() for o in ('train','valid')]", F + 'test_loaders_keep_to_their_part'),
    ('rows are skipped in the arrays and not in the table', 'data', "table = source.table.iloc[rows]", "table = source.table.iloc[:len(rows)] if not isinstance(rows, slice) else source.table", D + 'test_bad_files_are_named_counted_skipped_or_stopped_on'),
    ('another view comes from the same cache', 'data', "json.dumps([CACHE_VERSION, height, width, sorted(how.items())])", "json.dumps([CACHE_VERSION, height, width])", D + 'test_cache_is_versioned_by_settings_and_files'),
    ('a changed film comes from the old cache', 'data', "key.update(f'{stat.st_size} {stat.st_mtime_ns}'.encode())", "pass", D + 'test_cache_is_versioned_by_settings_and_files'),
    ('patients are learnt from and asked about', 'audit', "groups=patients, cv=parts", "cv=folds", 'tests/test_data_audit.py::test_shortcuts_do_not_come_from_the_patients'),
    # thresholds
    ('a threshold from test films is let through', 'evaluation', "shared = operating_point.chosen_on & set(map(str, patients))", "shared = set()", E + 'TestMistakes::test_threshold_from_test_films_is_refused'),
    ('a threshold forgets whom it was chosen on', 'thresholding', "chosen_on=frozenset(patients[use]))", "chosen_on=frozenset())", E + 'TestMistakes::test_threshold_from_test_films_is_refused'),
    ('the label-only threshold marks too much of healthy films', 'thresholding', "key=lambda point: point.threshold)", "key=lambda point: -point.threshold)", F + 'test_the_headline_rule_keeps_healthy_films_quiet'),
    ('all films choose the threshold', 'thresholding', "use = outlined[few_films(patients[outlined], n, seed)]", "use = outlined", T + 'TestThresholds::test_only_the_few_films_are_used'),
    ('marks reach to the same score on every film', 'thresholding', "self.share*peak, np.inf", "self.share*peak.max(), np.inf", T + 'TestOperatingPoint::test_a_share_is_of_each_films_own_peak'),
    ('marks by a share cover too much of healthy films', 'thresholding', "max(best, quiet)", "best", T + 'TestThresholds::test_both_promises_of_the_headline_rule_are_kept'),
    ('all films choose the share', 'thresholding', "n, seed=seed)]", "n=len(outlined))]", T + 'TestThresholds::test_only_the_few_films_choose_the_share'),
    ('shares of faint healthy films count for nothing', 'thresholding', "where=peak > point.threshold)", "where=peak > max(point.threshold, 1e-6))", T + 'TestThresholds::test_faint_healthy_films_are_counted_too'),
    ('few outlines may mark all of a healthy film', 'thresholding', "dice[loud & (shares < shares[-1])] = -1", "dice[loud & (shares < 0)] = -1", T + 'TestThresholds::test_few_outlines_leave_most_of_healthy_films_alone'),
    ('a kept row of another rule is believed', 'thresholding', "return not any(point.get('rule', '').startswith(_ONE) if probability", "return not any(False if probability", 'tests/test_baselines.py::test_a_kept_row_of_another_rule_is_measured_anew'),
    ('a panel weighs by where a film is cut', 'panel', "margins.append((smooth/max(points[name].threshold, 1e-6))", "margins.append((smooth/points[name].levels(smooth)[:, None, None])", L + 'test_a_sure_model_outbids_a_faint_one_whatever_their_shares'),
    # maps and metrics
    ('the map ignores the film', 'models', "return (films - c.film).abs()[:, 0]", "return (c.film*0 + .5)[:, 0]", F + 'test_a_map_follows_its_film'),
    ("a map is the next film's", 'thresholding', "scores[start:start+batch_size] = maps[...,::-1] if flip else maps", "scores[start:start+batch_size] = np.roll(maps[...,::-1] if flip else maps, 1, 0)", T + 'TestScoreFilms::test_batches_do_not_matter'),
    ('a flipped map is not flipped back', 'thresholding', "maps[...,::-1] if flip else maps", "maps", T + 'TestScoreFilms::test_flip_mirrors_there_and_back'),
    ('scores and truth of other sizes are compared', 'evaluation', "if array is not None and np.ndim(array) == 3 and array.shape != scores.shape:", "if False:", F + 'test_scores_of_another_size_are_refused'),
    ('a map of another size passes', 'thresholding', "if maps.shape != batch[:,0].shape:", "if False:", T + 'TestScoreFilms::test_bad_scorers_are_named'),
    ('Dice counts the true pixels twice', 'thresholding', "2*hit/(marked+true)", "2*hit/(2*true)", E + 'TestAgainstScikitLearn::test_masks'),
    ('Dice is 1 for an empty mask on a healthy film', 'thresholding', "np.where(true > 0, 2*hit/(marked+true), np.nan)", "np.where(true > 0, 2*hit/(marked+true), 1.)", E + 'TestCorners::test_empty_truth_is_not_defined'),
    ('films are drawn, not patients', 'evaluation', "names, film_of = np.unique(np.asarray(patients).astype(str), return_inverse=True)", "names, film_of = np.arange(len(patients)), np.arange(len(patients))", E + 'TestInterval::test_patients_are_the_unit'),
    ('swapped domains pass', 'evaluation', "if (~diseased).any() and (area[~diseased] > 0).mean() > .5:", "if False:", E + 'TestMistakes::test_swapped_domains_are_refused'),
    ('an inverted truth passes', 'evaluation', "if len(area[diseased]) and np.median(area[diseased]) > .6:", "if False:", E + 'TestMistakes::test_inverted_truth_is_refused'),
    ('false alarms are counted on diseased films', 'evaluation', "mean('marked_healthy', 'marked_area', ~sick)", "mean('marked_healthy', 'marked_area', sick)", F + 'test_false_alarms_are_those_on_healthy_films'),
    ('a film scores by its mean', 'thresholding', "return np.partition(flat, -k, axis=1)[:,-k:].mean(1)", "return flat.mean(1)", F + 'test_a_small_lesion_makes_a_high_film_score'),
    # what a user gets
    ('a mask comes back mirrored', 'segmenter', "return self.place.back(self.marks.astype(np.float32)) >= .5", "return self.place.back(self.marks[:, ::-1].astype(np.float32)) >= .5", S + 'test_a_film_of_the_models_size_is_not_changed'),
    ('a mask comes back somewhere else', 'segmenter', "(-l*x, (a - t)*y, (W - l)*x, (z - t)*y)", "(-l*x, a*y, (W - l)*x, z*y)", S + 'test_a_mask_lies_where_the_disease_is'),
    ('a mask is stretched over what the model did not see', 'segmenter', "else inside_box(*film.shape, width/height)", "else (0, 0, *film.shape[::-1])", S + 'test_a_mask_lies_where_the_disease_is'),
    ('a kept model has another threshold', 'segmenter', "operating_point=self.point.to_dict()", "operating_point=replace(self.point, threshold=.5).to_dict()", S + 'test_what_is_saved_comes_back_to_the_bit'),
    ('a SEG object is upside down', 'segmenter', "[source], mask[None].astype(np.uint8)", "[source], mask[None, ::-1].astype(np.uint8)", S + 'test_dicom_seg_refers_to_its_film_and_validates'),
    ('no film is too far', 'segmenter', "if d > FAR and not ordinary: said[i].append", "if False: said[i].append", S + 'test_a_negative_of_another_kind_of_film_is_far_and_named'),
    ('an overlay keeps its warning to itself', 'segmenter', "    if not warnings: return picture\n", "    return picture\n", S + 'test_an_overlay_shows_that_its_film_is_not_to_be_trusted'),
    ('two diseases change places in the labels', 'panel', "m.astype(np.uint8) << k", "m.astype(np.uint8) << (len(self.masks) - 1 - k)", L + 'test_every_disease_has_its_bit_and_its_state'),
    ('present and absent change places', 'panel', "np.where(probability >= self.high, PRESENT, np.where(probability < self.low, ABSENT, UNSURE))", "np.where(probability >= self.high, ABSENT, np.where(probability < self.low, PRESENT, UNSURE))", L + 'test_every_disease_has_its_bit_and_its_state'),
    # training
    ('a lesion is pasted and its outline mirrored', 'exercises', "y = torch.cat([moved[:, 1:],", "y = torch.cat([moved[:, 1:].flip(-1),", X + 'test_what_is_pasted_lies_under_its_outline'),
    ('what was painted on one film is shown on another', 'exercises', "pair(*self.painted, sound[:pasted])", "pair(*self.painted, sound[-pasted:])", X + 'test_what_is_painted_stays_on_its_film_and_near_the_outline'),
    ('what was painted is moved about', 'exercises', "if pasted and not self.painted else", "if pasted else", X + 'test_what_is_painted_stays_on_its_film_and_near_the_outline'),
    ('films on which nothing was found lend', 'exercises', "lenders = np.flatnonzero(where.any((1, 2)))", "lenders = np.arange(len(where))", X + 'test_what_is_painted_stays_on_its_film_and_near_the_outline'),
    ('lesions are pasted that another film has', 'exercises', "self.ill[chosen[pasted:]]]", "self.ill[chosen[:found]]]", X + 'test_what_is_pasted_lies_under_its_outline'),
    ('weights of another seed are taken for these', 'training', "if not same_choices(state['choices'], self.choices()):", "if False:", N + 'test_a_finished_training_is_not_taken_for_another_seed'),
    ('a kept run of films drawn otherwise is taken', 'runs', "| (films_version(self.disease) if self.source == 'phantom' else {})", "",
     'tests/test_runs.py::test_a_kept_run_on_films_that_the_phantom_draws_otherwise_by_now_is_made_anew'),
    ('a kept row of films drawn otherwise is taken', 'baselines', "if FIRST_FILMS | kept.get('settings', {}) == asked", "if kept.get('settings', {}) | films_version(disease) == asked",
     'tests/test_baselines.py::test_a_benchmark_resumes_and_mends_what_is_broken'),
    ('drawn pages have the outlines of other films', 'exercises', "outline = np.asarray(self.drawn.truth[rows], np.float32)", "outline = np.asarray(self.drawn.truth[rows[::-1]], np.float32)", X + 'test_a_quarter_of_the_pages_are_drawn_or_a_half_where_nothing_was_found'),
    ('many outlines are shown as rarely as few', 'exercises', "if len(self.drawn) >= 50:", "if len(self.drawn) >= 5000:", X + 'test_many_outlines_take_the_place_of_what_was_found'),
    ('outlines of validation films are learned from', 'exercises', "(table.split == 'train').to_numpy() & table.diseased.to_numpy(bool))\n    shown", "(table.split != '').to_numpy() & table.diseased.to_numpy(bool))\n    shown", X + 'test_outlines_are_those_of_ill_training_films_and_of_no_other'),
    ('a pupil is corrected in place', 'exercises', "copy.deepcopy(scorer.pupil).requires_grad_(True)", "scorer.pupil.requires_grad_(True)", X + 'test_another_way_to_teach_has_another_version'),
    ('a frozen pupil cannot be corrected', 'exercises', "copy.deepcopy(scorer.pupil).requires_grad_(True)", "copy.deepcopy(scorer.pupil)", X + 'test_one_who_found_nothing_is_corrected_all_the_same'),
    ('outlines are missed after the training', 'training', "drawn = outlined_films(films, m.outlined, seed) if m.outlined else None # before hours of training, not after", "drawn = outlined_films(films, m.outlined, seed) if m.outlined and films.truth is not None else None", N + 'test_twenty_outlines_are_asked_for_first_and_shown_last'),
    ('outlines that were drawn anew are not looked at', 'training', " + hashlib.sha256(np.packbits(drawn.truth > 0)).hexdigest()[:16]", "", N + 'test_twenty_outlines_are_asked_for_first_and_shown_last'),
    ('a correction takes as long as a lesson', 'training', "drawn, math.ceil(steps/2), m, seed", "drawn, steps, m, seed", N + 'test_twenty_outlines_are_asked_for_first_and_shown_last'),
    ('boxes are taken for outlines', 'exercises', """astype(str).str.contains('"box"').any()""", "isna().all()", X + 'test_a_box_is_no_outline'),
    ('a pupil of other outlines is taken up', 'training', "if state and same_choices(state['choices'], choices):", "if state:", N + 'test_twenty_outlines_are_asked_for_first_and_shown_last'),
    ('a card keeps quiet of outlines', 'segmenter', "drawn = (metrics or {}).get('outlined') or about.get('choices', {}).get('outlined')", "drawn = 0", 'tests/test_segmenter.py::test_a_card_says_whether_outlines_were_seen'),
    ('what is far from a lesion is pasted', 'exercises', "(changes*close_to(where, near) if near else changes)", "changes", X + 'test_a_lesion_ends_at_a_share_of_its_peak_and_brings_nothing_from_far'),
    ('lesions end anywhere', 'exercises', "scores > np.maximum(share*peak, floor)[:, None, None]", "scores > np.maximum(.5*peak, floor)[:, None, None]", X + 'test_a_lesion_ends_at_a_share_of_its_peak_and_brings_nothing_from_far'),
    ('every map is blurred alike', 'exercises', "scores.append(smooth(scorer(x).cpu().numpy(), blur))", "scores.append(smooth(scorer(x).cpu().numpy()))", X + 'test_the_more_a_map_is_blurred_the_rounder_is_the_outline'),
    ("a method's book is the usual one", 'training', "dict(share=m.share, near=m.near, blur=m.blur, place=m.place) |", "dict(near=m.near) |", N + 'test_the_row_of_a_method_says_what_its_book_is_like'),
    ('a pupil is outlined like a generator', 'training', "| (BY_A_PUPIL if lesson else {})", "| {}", N + 'test_the_row_of_a_method_says_what_its_book_is_like'),
    ('a checkpoint is written for epochs that are passed over', 'training', "if self.learn.epoch < self.done: return", "", N + 'test_a_training_that_is_stopped_twice_ends_with_the_same_bits'),
    ('marks go by the name of the film', 'cli', "if row and row['made_of'] == origin: yield", "if row: yield", 'tests/test_cli.py::test_nobody_is_given_the_marks_of_somebody_of_the_same_name'),
    ('a shifted patient was trained on', 'phantom', "return f'shifted-{seed}' if shifted else seed", "return seed", 'tests/test_phantom.py::test_shifted_films_come_from_other_ranges'),
    ('the usual place never counts', 'exercises', "if overlap > place: #", "if overlap > 1: #", X + 'test_outlines_keep_to_the_place_of_a_disease_that_has_one'),
    ('the usual place always counts', 'exercises', "if overlap > place: #", "if overlap > 0: #", X + 'test_outlines_keep_to_the_place_of_a_disease_that_has_one'),
    ('what has its place is mirrored', 'exercises', "if not stays: grid", "if n: grid", X + 'test_what_has_its_place_is_pasted_there'),
    ('the book forgets that a disease has its place', 'exercises', "scatter(lesions[:pasted], self.rng, self.stays)", "scatter(lesions[:pasted], self.rng)", X + 'test_what_has_its_place_is_pasted_there'),
    ('a correction forgets the place', 'training', "steps, seed, device, m.place)", "steps, seed, device)", N + 'test_twenty_outlines_are_asked_for_first_and_shown_last'),
    ('the optimiser wakes up somewhere else', 'training', "self.learn.model.to(self.learn.dls.device) #", "#", N + 'test_what_is_taken_up_again_lies_where_the_weights_lie'),
    ('a resumed run forgets its usual place', 'training', "scorer.name, state.get('overlap')), state.get('seconds', 0.)", "scorer.name), state.get('seconds', 0.)", N + 'test_lessons_go_on_where_they_stopped'),
    ('nobody drew it, so there is nothing', 'baselines', "part(films if known.all() else films[known], split)", "part(films, split)", 'tests/test_baselines.py::test_the_unet_learns_nothing_from_films_that_nobody_outlined'),
    ('a lesion is turned as on a square film', 'exercises', "-angle.sin() * zoom * (h/w)", "-angle.sin() * zoom", X + 'test_a_round_lesion_stays_round_on_a_film_that_is_not_square'),
    ('the usual place is marked on everybody', 'baselines', "judge.verdict(x, None)[:, None, None]*usual.to(x)", "usual.to(x).expand(len(x), -1, -1)", 'tests/test_baselines.py::test_the_usual_place_is_the_same_on_every_film_and_only_as_loud_as_the_film_is_ill'),
    ('a peer is drawn from corner to corner', 'baselines', "size=films.shape[-2:], mode='bilinear')[:,0]", "size=films.shape[-2:], mode='bilinear', align_corners=True)[:,0]", 'tests/test_baselines.py::test_a_place_of_the_classifier_is_drawn_where_it_looks'),
    ('lessons begin anew', 'training', "for lesson in range(done, m.lessons)", "for lesson in range(m.lessons)", N + 'test_lessons_go_on_where_they_stopped'),
    ('a pupil of another exercise book is taken', 'training', "asdict(m) | run | dict(book=BOOK_VERSION, lessons=lessons, outlined=0)", "asdict(m) | run | dict(lessons=lessons)", N + 'test_a_pupil_is_taught_anew_when_the_exercise_book_is_another'),
    ('domains change places in training', 'training', "counterpart, same = self._translate(self.there.generator, sick, healthy)", "counterpart, same = self._translate(self.there.generator, healthy, sick)", F + 'test_training_turns_the_diseased_films'),
    # the phantom
    ('a changed byte of the cache goes unnoticed', 'phantom', "if done.get(c) != self.check(c)]", "if c not in done]", P + 'test_a_broken_cache_is_rebuilt[flipped byte]'),
    ('a cache cut short is taken as it is', 'phantom', "        if found.shape == shape and found.dtype == dtype: return found\n", "        return found\n", P + 'test_a_broken_cache_is_rebuilt[another shape]'),
    ('a killed run begins anew', 'phantom', "for line in self.marks.read_text().splitlines() if self.marks.is_file() else []:", "for line in []:", P + 'test_a_killed_run_goes_on_where_it_stopped'),
    ('two processes render at once', 'phantom', "    with FileLock(folder/'lock'): #", "    if True: #", P + 'test_two_processes_take_turns'),
    ('the twin has noise of its own', 'phantom', "greys = [expose(w + extra, noise, n) for w in", "greys = [expose(w + extra, noise.flip(0), n) if w is twin and twin is not water else expose(w + extra, noise, n) for w in", P + 'test_the_twin_is_the_same_film_without_the_disease'),
    ('the twin loses the other disease', 'phantom', "for d in diseases if d != disease} if disease else None", "for d in ()} if disease else None", P + 'test_the_twin_keeps_the_other_disease'),
    ('displacement points the other way', 'phantom', "pixels = torch.stack([-flat[..., 2]*h/n['fov'], flat[..., 0]", "pixels = torch.stack([flat[..., 2]*h/n['fov'], -flat[..., 0]", P + 'test_emphysema_moves_the_diaphragm_down_and_a_hernia_pushes_outwards'),
    ('a sign cannot be switched off', 'phantom', "(1 - .8*self.signs['bronchograms']*c.airway)", "(1 - .8*c.airway)", P + 'test_every_sign_is_switched_and_graded_and_leaves_the_twin_alone[pneumonia]'),
    ('labels of test films are wrong too', 'phantom', "wrong = (part == 'train') & ([chance('label', r)", "wrong = (part != '') & ([chance('label', r)", P + 'test_label_noise_is_in_training_alone_and_as_rare_as_asked'),
    ('movement explains nothing', 'models', "(np.minimum(left, np.abs(film - counterpart)), np.abs(film - counterpart))", "(np.abs(film - counterpart),)*2", X + 'test_what_only_moved_hardly_counts_and_a_mass_keeps_its_rim'),
    ('movement is asked pixel by pixel', 'models', "near = [gaussian_filter(a, shape[0]/12) + 1e-4", "near = [a + 1e-4", X + 'test_movement_is_asked_near_by_and_not_pixel_by_pixel'),
    ('a wide film shows more of the patient', 'phantom', "numbers['fov'] /= math.sqrt(aspect)", "pass", P + 'test_films_of_all_shapes_show_as_much_of_the_patient'),
    ('the shifted set is the usual one', 'phantom', "float(rng.uniform(*r[int(shifted and rng.random() < OUTSIDE)]))", "float(rng.uniform(*r[0]))", P + 'test_shifted_films_come_from_other_ranges'),
    ('nobody is hardly ill', 'phantom', "if rng.random() < .06 else", "if rng.random() < 0 else", P + 'test_severity_has_a_tail_that_nobody_sees'),
    ("the order of films hangs on no seed", 'baselines', "    learn.dls.train.rng = random.Random(random.random())", "    random.random()",
     'tests/test_baselines.py::test_the_same_seed_gives_the_same_maps[fit_unet]'),
    # layers that compute the same with less work
    ('a sum of six has a wrong sign', 'models', "[0, 4, -4, -1, 1, 0]", "[0, 4, -4, 1, 1, 0]", M + 'test_winograd_is_a_convolution'),
    ('the mirrored edge is the edge once more', 'models', "[None], (0, 0, 1, 1), mode='reflect')", "[None], (0, 0, 1, 1), mode='replicate')", M + 'test_a_line_of_four_is_its_own_mirror'),
    ('films and features change places', 'models', "return x.view(h*w, n).T.contiguous().view(b, -1, h, w)", "return x.view(h*w, n).T.contiguous().view(-1, b, h, w).transpose(0, 1)", M + 'test_winograd_is_a_convolution'),
    ('the gradient of the weights is mirrored', 'models', "(y.transpose(1, 2) @ x).view(36, -1)).view(3, 3, d, c).permute", "(y.transpose(1, 2) @ x).view(36, -1)).view(3, 3, d, c).flip(0).permute", M + 'test_winograd_is_a_convolution'),
    ('the gradient of the largest goes to its neighbour', 'models', "ctx.save_for_backward(up >= low, left >= right)", "ctx.save_for_backward(up >= low, right >= left)", M + 'test_the_largest_of_four'),
    ('a model marks by the way that is for training', 'models', "return (self.few and self.training and", "return (self.few and", M + 'test_where_it_is_not_taken'),
]


def child(work):
    "Run `work()` in a child that has imported everything but the library: its exit status."
    pid = os.fork()
    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try: code = work()
    except BaseException: traceback.print_exc(); code = 9
    sys.stdout.flush(); sys.stderr.flush(); os._exit(code)


def run_tests(copy, names, log):
    "pytest's exit code: 0 all passed, 1 some failed; 8 when the library can't even be imported."
    def work():
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1); os.dup2(out, 2)
        os.chdir(copy)
        sys.path[:] = [str(copy)] + [p for p in sys.path if p and Path(p).resolve() != ROOT]
        try: import lazyseg.audit, lazyseg.evaluation, lazyseg.training  # noqa: E401, F401
        except BaseException: traceback.print_exc(); return 8
        assert Path(lazyseg.audit.__file__).is_relative_to(copy), lazyseg.audit.__file__
        import pytest
        return int(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', '-W', 'ignore', *names]))
    return child(work)


def make_copy(folder, module=None, old=None, new=None):
    "The library and its tests; with a fault in them."
    folder = Path(folder)
    for o in ('lazyseg', 'tests'): shutil.copytree(ROOT/o, folder/o, ignore=shutil.ignore_patterns('__pycache__', '*.png'))
    for o in ('settings.ini',): shutil.copy(ROOT/o, folder)
    (folder/'nbs').mkdir() # what makes it a checkout
    (folder/'data'/'cache').mkdir(parents=True) # a cache of its own: no faulty film may get into the usual one
    if (CACHE/'ct').is_dir(): (folder/'data'/'cache'/'ct').symlink_to(CACHE/'ct', target_is_directory=True)
    if module is None: return folder
    path = folder/'lazyseg'/f'{module}.py'
    text = path.read_text(encoding='utf-8')
    if text.count(old) != 1: raise LookupError(f"lazyseg/{module}.py holds {text.count(old)} times: {old.strip()}")
    path.write_text(text.replace(old, new), encoding='utf-8')
    return folder


def preload():
    "Import what is slow to import, so that every child has it already; the library itself is imported by each child from its copy."
    sys.path.insert(0, str(ROOT))
    import lazyseg.audit, lazyseg.evaluation, lazyseg.training, pytest, hypothesis  # noqa: E401, F401
    try: import pydicom.pixels  # noqa: F401
    except ImportError: pass
    for name in [o for o in sys.modules if o.split('.')[0] == 'lazyseg']: del sys.modules[name]


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--only', help='faults whose description holds one of these, parted by commas')
    ask = ask.parse_args()
    faults = [o for o in FAULTS if not ask.only or any(w.strip() in o[0] for w in ask.only.split(','))]
    start, unseen = time.monotonic(), []
    preload()
    with tempfile.TemporaryDirectory() as home:
        log = Path(home, 'log')
        os.environ['TMPDIR'] = home
        copy = make_copy(Path(home, 'whole'))
        code = run_tests(copy, sorted({o[4] for o in faults}), log)
        if code: sys.exit(f"The tests have to pass before anything is broken:\n{log.read_text()[-3000:]}")
        print(f"as it is: {len({o[4] for o in faults})} tests pass", flush=True)
        for what, module, old, new, test in faults:
            try: code = run_tests(make_copy(Path(home, 'fault'), module, old, new), [test], log)
            except LookupError as e: code, what = 7, f"{what}: {e}"
            shutil.rmtree(Path(home, 'fault'), ignore_errors=True)
            said = {0: 'NOT SEEN by', 1: 'seen by', 7: 'does not fit the code, for', 8: 'BREAKS THE IMPORT before'}.get(code, f'pytest stopped with {code} at')
            print(f"{what}: {said} {test.rpartition('::')[2]}", flush=True)
            if code != 1: unseen.append(what)
    print(f"{len(faults)} faults, {len(faults) - len(unseen)} seen, in {time.monotonic() - start:.0f} s")
    return 1 if unseen else 0


if __name__ == '__main__': sys.exit(main())
