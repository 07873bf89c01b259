# `make demo` and `make test` set up .venv first. The set-up goes in stages; each leaves a stamp, so that one that was
# interrupted goes on where it stopped and one that is complete costs nothing.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip
STAMPS := $(VENV)/.stamps

# mmcv would start four compilers on any smaller machine.
export MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export MMCV_WITH_OPS ?= 1

# A stamp's name carries a checksum of what its stage and the stages before it install.
sum = $(shell cat $(addprefix requirements/,$(1)) $(2) | cksum | cut -d' ' -f1)
TORCH := $(STAMPS)/torch-$(call sum,torch.txt)
MMCV := $(STAMPS)/mmcv-$(call sum,torch.txt mmcv.txt)
PACKAGE := $(STAMPS)/package-$(call sum,*.txt,setup.py)

.PHONY: help setup data about demo demo-seg demo-cls demo-multi test lint docs wheel-check commands-check serve-check browser-check browser
help:
	@echo 'make demo    set up, then train and evaluate the demo: Mask R-CNN with moving prompts on embedded data'
	@echo 'make demo-seg, make demo-cls   likewise segmentation (SETR) and classification (Swin)'
	@echo 'make demo-multi   digits detected, segmented and classified by one frozen backbone'
	@echo 'make test    set up, then run the tests'
	@echo 'make lint    set up, then run ruff and mypy'
	@echo 'make docs    set up, then build the site of the documents, build/docs/index.html'
	@echo 'make wheel-check   set up, then build sdist and wheel, and do what the pages say with the wheel, outside this folder'
	@echo 'make commands-check   set up, then carry out the commands of the pages, in a copy, on noise in place of COCO and others'
	@echo 'make serve-check   set up, then start the server of examples/serve.py and ask it by real clients'
	@echo 'make browser-check   set up, then try the page of examples/serve.py in a headless Chromium, which must be there'
	@echo 'make setup   only set up .venv (with python3, or with PYTHON=python3.11; to change it, remove .venv)'
	@echo 'make data    only write the embedded data'

setup: $(PACKAGE)
	@echo '$(VENV) is set up'

# $(1): the stage. pip writes INSTALLER last: without it a package is half there, but pip takes it for installed.
define begin
mkdir -p $(STAMPS) && rm -f $(STAMPS)/$(1)-*; \
for d in $(VENV)/lib/python3*/site-packages/*.dist-info; do \
	if [ -d "$$d" ] && [ ! -e "$$d/INSTALLER" ]; then echo "==> repairing $$d"; rm -rf "$$d"; fi; done
endef

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
		"$(PYTHON) is Python %d.%d, but OneDL mmcv supports 3.10 to 3.12. Try: make PYTHON=python3.11 ..." % v)'
	@echo '==> Set-up 1/4: $(VENV)'
	@{ $(PYTHON) -m venv $(VENV) && $(PIP) --version >/dev/null; } || $(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(TORCH): $(STAMPS)/venv
	@echo '==> Set-up 2/4: torch (some 3 GB to download where pip has not cached it)'
	@$(call begin,torch)
	$(PIP) install -r requirements/torch.txt
	@$(PY) -c 'import torch, torchvision, timm, numpy'
	@touch $@

# --no-build-isolation: mmcv's build must see torch, or it leaves out the operators without a word.
# A wheel that pip cached may have been built for another torch; then the import fails and mmcv is built anew.
$(MMCV): $(TORCH)
	@echo '==> Set-up 3/4: mmcv'
	@$(call begin,mmcv)
	@$(PIP) install --dry-run --quiet --no-deps --only-binary :all: -r requirements/mmcv.txt >/dev/null 2>&1 || { \
		$(PY) -c 'import sys, torch; v = torch.__version__; sys.exit(tuple(map(int, v.split(".")[:2])) >= (2, 14) and \
			"torch %s needs C++20, but mmcv compiles with C++17: use torch < 2.14." % v or 0)'; \
		echo '==> No ready-made mmcv for this machine. Unless pip built it here before, its operators are compiled'; \
		echo '==> now: about 20 minutes on two cores (MAX_JOBS=$(MAX_JOBS)). All output: $(VENV)/mmcv.log'; }
	@build() { $(PIP) install -v --no-build-isolation -c requirements/torch.txt -r requirements/mmcv.txt "$$@" 2>&1 | \
			tee $(VENV)/mmcv.log | requirements/compile_progress.sh; }; \
		build; \
		$(PY) -c 'import cv2' || { echo 'OpenCV misses system libraries; Debian and Ubuntu: apt-get install libgl1 libglib2.0-0'; exit 1; }; \
		$(PY) -c 'import mmcv.ops' || { \
		build --force-reinstall --no-deps --no-cache-dir --no-binary onedl-mmcv; $(PY) -c 'import mmcv.ops'; }
	@touch $@

$(PACKAGE): $(MMCV)
	@echo '==> Set-up 4/4: mmdet, mmseg, mmpretrain and mmprovpt itself'
	@$(call begin,package)
	$(PIP) install --no-build-isolation -c requirements/torch.txt -e '.[all,tests]'
	@$(PY) -c 'import mmdet, mmseg, mmpretrain, pycocotools, sklearn, tensorboard, pytest, xdist, hypothesis, mypy, peft, pytorch_grad_cam, torchao'
	@touch $@

# At once done if the data is complete.
data: $(PACKAGE)
	@$(PY) tools/dataset_converters/miniature_coco.py --out data/miniature

demo: CONFIG := mask_rcnn_swin_mini_provpt_digits
demo: ABOUT := Mask R-CNN on a frozen Swin finds digits on photographs: 128 images, 6 epochs, 5 relocations. About 4 min on two idle cores
demo-seg: CONFIG := setr_pup_vit_mini_provpt_digits
demo-seg: ABOUT := SETR on a frozen ViT segments digits on photographs: 128 images, 400 iterations. About 5 min of one core
demo-cls: CONFIG := swin_mini_provpt_digits
demo-cls: ABOUT := A frozen Swin classifies digits on photographs: 1024 images, 10 epochs. About 2 min of one core

# Before anything else.
about:
	@echo '==> $(ABOUT).'
	@[ -e $(PACKAGE) ] || echo '==> First the set-up, once: 3 GB to download and, without a wheel of mmcv, about 20 min of compiling.'

# TRAIN_ARGS='--cfg-options ...' is for a shorter run.
demo demo-seg demo-cls: about data
	@echo '==> 1/2: training and evaluation; each line of the log has its eta'
	$(PY) tools/train.py configs/demo/$(CONFIG).py --work-dir work_dirs/$@ $(TRAIN_ARGS)
	@echo '==> 2/2: pictures'
	@dir=work_dirs/$@; run=$$(ls -d $$dir/2*/ | tail -n 1); checkpoint=$$(cat $$dir/last_checkpoint); \
		$(PY) tools/visualize.py configs/demo/$(CONFIG).py "$$checkpoint" --out "$${run}predictions" > $$dir/pictures.log 2>&1 \
			&& $(PY) tools/analysis_tools/plot_training.py $$run --out "$${run}training.png" >> $$dir/pictures.log 2>&1 \
			|| { cat $$dir/pictures.log >&2; exit 1; }; echo; \
		for f in "$$checkpoint" "$${run}relocations.jsonl" "$${run}prompt_distribution.png" "$${run}training.png"; do \
			[ -s "$$f" ] || { echo "The demo ended without $$f" >&2; exit 1; }; done; \
		echo "checkpoint            $$checkpoint"; \
		echo "relocation log        $${run}relocations.jsonl ($$(wc -l < "$${run}relocations.jsonl") periods)"; \
		echo "prompt distribution   $${run}prompt_distribution.png"; \
		echo "loss and metric       $${run}training.png"; \
		echo "predictions           $${run}predictions/ ($$(ls $${run}predictions | wc -l) images beside their ground truth)"; \
		echo; \
		echo 'What the pictures say       docs/how-to/pictures.md'; \
		echo 'What the figures are worth  configs/demo/README.md'; \
		echo 'Your images, your config    docs/how-to/custom_data.md, docs/how-to/recipes.md'

# All three by one backbone; then the table of memory and time beside a model for each.
demo-multi: CONFIG := configs/demo/multi_swin_mini_vpt_digits.py
demo-multi: data
	$(PY) tools/train.py $(CONFIG) --work-dir work_dirs/$@
	$(PY) benchmarks/multi_task.py $(CONFIG) "$$(cat work_dirs/$@/last_checkpoint)"
	@echo "checkpoint            $$(cat work_dirs/$@/last_checkpoint)"

# One thread per worker, or the workers fight over the cores.
test: $(PACKAGE)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --maxprocesses 8 $(PYTEST_ARGS)

lint: $(PACKAGE)
	$(PY) -m ruff check .
	$(PY) -m mypy

# An environment of its own, which sees the packages of the other by a path.
define make_venv
$(PY) -m venv --clear $(@D)
$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(echo $(@D)/lib/python3*/site-packages)/others.pth
$(@D)/bin/python -m pip install --quiet -r requirements/$(1)
@touch $@
endef

DOCS := .venv-docs
$(DOCS)/stamp-$(call sum,docs.txt): | $(PACKAGE)
	$(call make_venv,docs.txt)

# Warnings are errors, links within the site among them.
docs: $(DOCS)/stamp-$(call sum,docs.txt)
	OMP_NUM_THREADS=1 $(DOCS)/bin/python -m sphinx -W --keep-going -q -b html -c docs . build/docs
	@echo 'build/docs/index.html'

wheel-check: $(PACKAGE)
	OMP_NUM_THREADS=1 $(PY) benchmarks/users_way.py

# COMMANDS='dist_train sweep' is for some of them.
commands-check: $(PACKAGE)
	$(PY) benchmarks/carry_out.py $(COMMANDS)

SERVE := .venv-serve
$(SERVE)/stamp-$(call sum,serve.txt): | $(PACKAGE)
	$(call make_venv,serve.txt)

serve-check: $(SERVE)/stamp-$(call sum,serve.txt)
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(SERVE)/bin/python -m pytest tests/test_serve.py

BROWSER := .venv-browser
$(BROWSER)/stamp-$(call sum,serve.txt browser.txt): | $(PACKAGE)
	$(call make_venv,browser.txt)

# First of all, for the set-up takes long.
browser:
	@command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome; } >/dev/null || { \
		echo 'no Chromium with its driver on the PATH. Debian: apt-get install chromium chromium-driver;' >&2; \
		echo 'elsewhere: Chrome (google-chrome) and the chromedriver of its version' >&2; exit 1; }

browser-check: browser $(BROWSER)/stamp-$(call sum,serve.txt browser.txt)
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(BROWSER)/bin/python -m pytest tests/test_serve_page.py
