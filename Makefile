# Each target sets up all that it needs, on a machine with Python 3.10 or newer, make and git.
#   make reproduce                      one disease on the phantom, from the CT to a report
#   make reproduce DISEASE=hernia METHOD=paper PROFILE=smoke SOURCE=table DATA=films.csv
#   make report                         every disease, the paper's method and lazyseg, 64 and 128 px, and one report over them; resumes
#   make report DISEASES="edema hernia" METHODS=lazyseg SIZES=64 PROFILE=cpu SOURCE=table DATA=films.csv CREDIT="whose films, which licence" PICTURES=yes
#   make test | test-latest | lab | docs | bench | benchmark | ablation | lungs | readme | clean

PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(abspath $(VENV))/bin
DISEASE ?= pneumonia
SOURCE  ?= phantom
DATA    ?=
METHOD  ?= lazyseg
PROFILE ?= auto
SEED    ?= 0
SIZE    ?= 0
WHERE   ?=
VIEW    ?= film
LUNG_MASKS ?= auto
EPOCHS  ?= 0
OUT     ?= reports
CREDIT  ?=
PICTURES ?= yes
# of `make report`; no sizes: 64 and 128, or 32 for the profile smoke
DISEASES ?= pneumonia edema emphysema hernia
METHODS  ?= paper lazyseg
SIZES    ?=

export PATH := $(BIN):$(PATH)
.PHONY: help setup reproduce report test test-latest lab docs bench benchmark ablation lungs readme clean

help:
	@sed -n '1,6p' Makefile

# One environment for development and for the course. torch and torchvision are resolved in the same call:
# a torchvision built for another torch fails at import.
$(VENV)/.installed: settings.ini setup.py
	@echo "Setting up $(VENV): this downloads several gigabytes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,lab,dicom,download]"
	@touch $@

setup: $(VENV)/.installed

reproduce: setup
	lazyseg train "$(DISEASE)" --source "$(SOURCE)" --data "$(DATA)" --where "$(WHERE)" --view "$(VIEW)" --lung-masks "$(LUNG_MASKS)" --method "$(METHOD)" \
	  --size $(SIZE) --profile "$(PROFILE)" --epochs $(EPOCHS) --seed $(SEED) --out "$(OUT)"

# A run that is there is kept, a stopped one goes on, one that fails is named at the end and makes the exit code 1.
report: setup
	lazyseg report --diseases $(DISEASES) --methods "$(METHODS)" --sizes "$(SIZES)" --source "$(SOURCE)" --data "$(DATA)" \
	  --where "$(WHERE)" --view "$(VIEW)" --lung-masks "$(LUNG_MASKS)" --credit "$(CREDIT)" --profile "$(PROFILE)" --epochs $(EPOCHS) --seed $(SEED) --out "$(OUT)" $(if $(filter no No False false,$(PICTURES)),--no-pictures)

test: setup
	bash tests/run.sh

# The library in an environment of its own, with today's fastai and fastcore, without nbdev, jupyterlab, papermill.
test-latest:
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade ".[audit,dicom]" pytest hypothesis
	cd tests && ../.venv-latest/bin/python -m pytest -q -p no:cacheprovider -m "not dev" .

lab: setup
	jupyter lab nbs/index.ipynb

docs: setup
	bash tests/docs.sh

readme: setup
	python tests/readme.py > README.md

# Every peer and ceiling on every disease of the phantom: hours; what is there already is kept. Two diseases at a time, each on
# half of the cores: small networks gain more from that than from a second thread. The last line gathers, and makes what went missing.
benchmark: setup
	mkdir -p reports/benchmark
	for half in pneumonia,emphysema edema,hernia; do \
	  OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(( ($$(nproc 2>/dev/null || echo 2) + 1)/2 ))} LAZYSEG_LINES=1 papermill nbs/benchmark.ipynb /dev/null -p diseases $$half \
	    -p profile "$(PROFILE)" -p seed $(SEED) --log-output & done; wait
	LAZYSEG_LINES=1 papermill nbs/benchmark.ipynb reports/benchmark/benchmark.ipynb -p profile "$(PROFILE)" -p seed $(SEED) --log-output

# What each part of the method is worth: one run for each variant; what is there already is kept.
ablation: setup
	python -c "from lazyseg.ablation import ablate; ablate(('$(DISEASE)',), seeds=($(SEED),), profile='$(PROFILE)')"

# The network that finds lungs, from the CT on; a stopped training goes on. Where LAZYSEG_CXR names the real films, it is measured on them.
lungs: setup
	python -m lazyseg.lungs

bench: setup
	for b in benchmarks/*.py; do echo "== $$b"; python $$b || exit 1; done

clean:
	rm -rf _docs _proc build dist *.egg-info
