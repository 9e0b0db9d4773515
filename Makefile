# The two commands of the README: `make quickstart` and `make test`. Each makes its own environment first.
#   make quickstart SMALL=1        the same in a minute or two: fewer scenes and steps
#   make test PYTEST_ARGS="-m 'not slow'"
#   make quickstart PYTHON=python3.12 VENV=/somewhere/else PIP_ARGS="--find-links wheels"

PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
LAVIS_VENV ?= .venv-lavis
LAVIS_PYTHON ?= python3.11
PIP_ARGS ?=
# on CPU two processes with a thread each are faster than one with two
PROCESSES ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ "$$n" -ge 2 ] && echo 2 || echo 1)
PYTEST_ARGS ?=
# programs of the environments; `PY=python` runs the steps in one that is there already
PY = $(VENV)/bin/python
TEST_PY = $(TEST_VENV)/bin/python

ifdef SMALL
NAME ?= quickstart-small
WORLD ?= data/world-small
SCENES ?= --train 64 --val 8 --test 12
SETTINGS ?= loop.steps=12 loop.eval_every=0
VIEWS ?= --limit 16
else
NAME ?= quickstart
WORLD ?= data/world
SCENES ?= --train 2000 --val 100 --test 150
SETTINGS ?=
VIEWS ?= --limit 150
endif
RUN = runs/$(NAME)

# RegionSpot from nothing: its scenes, the categories that it never learns, and its runs beside the released settings
SPOT = data/regionspot
HELD_OUT ?= car hat kite lamp mushroom table
SPOT_SCENES ?= --train 2500 --val 200 --test 300
SINGLE_SCENES ?= --train 5000 --test 0
SPOT_SETTINGS ?=
STAND_IN_SETTINGS ?=
SPOT_RUNS = runs/regionspot
# what the paper's ablations change, and the places of CLIP's patches, beside a run with as few steps that changes
# nothing; the two of a token read another one of SAM's
ABLATION_STEPS ?= 500
ABLATIONS = unchanged token-prompt token-mlp depth-1 depth-6 patches-only one-template no-places
token-prompt = model.token=prompt
token-mlp = model.token=mlp
depth-1 = model.decoder_layers=1
depth-6 = model.decoder_layers=6
patches-only = model.class_token=false
one-template = model.templates=one
no-places = model.clip_positions=none

MOTION = data/motion
MOTION_CLIPS ?= --train 4000 --test 300
MOTION_ARGS ?=

.PHONY: help quickstart quickstart-steps regionspot regionspot-steps spot-sam spot-clip spot-ablation omni omni-steps test bench lavis lavis-steps lint clean
help:
	@sed -n 's/^# \(.*\)/\1/p' Makefile | head -5
	@echo "targets: quickstart regionspot spot-ablation omni test bench lavis lint clean"

quickstart: $(VENV)/.installed-all
	$(MAKE) quickstart-steps

# draw the world, train on it, score scenes it has not seen beside the baselines, write the page
quickstart-steps:
	$(PY) -m data_prep.world --out $(WORLD) $(SCENES)
	$(PY) -m torch.distributed.run --standalone --nproc_per_node $(PROCESSES) -m train.run --config configs/quickstart.yaml \
		name=$(NAME) data.train=$(WORLD)/train.jsonl data.val=$(WORLD)/val.jsonl loop.overwrite=true \
		model.words.tags=$(WORLD)/tags.txt model.words.attributes=$(WORLD)/attributes.json \
		model.words.categories=$(WORLD)/categories.txt $(SETTINGS)
	$(PY) -m eval.run --model $(RUN) --task world --data $(WORLD)/test.jsonl --baselines --overwrite
	$(PY) -m eval.sweep --model $(RUN) --task world --data $(WORLD)/test.jsonl --overwrite $(VIEWS)
	$(PY) -m eval.report --run $(RUN) --task world --data $(WORLD)/test.jsonl
	@echo "look at $(RUN)/report.html"

# small SAM and CLIP from nothing, RegionSpot on them, and what it recognises beside CLIP on crops
regionspot: $(VENV)/.installed-all
	$(MAKE) regionspot-steps

regionspot-steps:
	$(PY) -m data_prep.world --out $(SPOT) $(SPOT_SCENES) --image-hw 192 256 --hold-out $(HELD_OUT)
	$(PY) -m data_prep.world --out $(SPOT)/single $(SINGLE_SCENES) --image-hw 128 170 --most 1 --seed 1
	$(MAKE) -j 2 spot-sam spot-clip
	rm -rf $(SPOT)/features $(SPOT)/features-* $(ABLATIONS:%=$(SPOT_RUNS)/%)
	$(PY) -m train.extract --config configs/regionspot_world.yaml $(SPOT_SETTINGS)
	$(PY) -m train.run --config configs/regionspot_world.yaml loop.overwrite=true $(SPOT_SETTINGS)
	$(PY) -m eval.held_out --models $(SPOT_RUNS)/spot --data $(SPOT)/test.jsonl

# RegionSpot with one setting changed; after `make regionspot`. Killed, it goes on: what is there is kept
spot-ablation: $(ABLATIONS:%=$(SPOT_RUNS)/%/best/config.json)
	$(PY) -m eval.held_out --models $(ABLATIONS:%=$(SPOT_RUNS)/%) --data $(SPOT)/test.jsonl

$(ABLATIONS:%=$(SPOT_RUNS)/%/best/config.json): $(SPOT_RUNS)/%/best/config.json:
	$(PY) -m train.extract --config configs/regionspot_world.yaml $(call ablation,$*) $(SPOT_SETTINGS)
	$(PY) -m train.run --config configs/regionspot_world.yaml name=$* loop.overwrite=true loop.steps=$(ABLATION_STEPS) $(call ablation,$*) $(SPOT_SETTINGS)

# settings of an ablation; where SAM's token is another, with features of their own
ablation = $($(1)) $(if $(filter token-%,$(1)),$(own-features))
own-features = "data.train=[{path: $(SPOT)/train-seen.jsonl, features: $(SPOT)/features-$(1), vocabulary: $(SPOT)/seen.txt}]"

spot-sam spot-clip: spot-%:
	$(PY) -m train.stand_ins.$* --config configs/stand_ins/$*.yaml num_threads=1 overwrite=true $(STAND_IN_SETTINGS)

# a small Omni-RGPT on the world in motion, what it is compared with, and the table; goes on after a kill
omni: $(VENV)/.installed-all
	$(MAKE) omni-steps

omni-steps:
	test -f $(MOTION)/test.jsonl || $(PY) -m data_prep.moving_world --out $(MOTION) $(MOTION_CLIPS)
	$(PY) -m train.motion --data $(MOTION) --processes $(PROCESSES) $(MOTION_ARGS)

# as many files of tests at a time as processes, with a thread each
test: $(TEST_VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(TEST_PY) -m pytest -n $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

bench: $(TEST_VENV)/.installed-dev
	$(TEST_PY) -m bench.run $(BENCH)
	$(TEST_PY) -m bench.scale
	$(TEST_PY) -m bench.scores
	$(TEST_PY) -m bench.serve

# the real LAVIS, in an environment of its own (Python 3.11), against ours with each other's weights
lavis: $(VENV)/.installed-all
	$(MAKE) lavis-steps

lavis-steps: $(LAVIS_VENV)/.installed
	$(PY) -m tests.lavis_parity.compare --lavis $(LAVIS_VENV)/bin/python

lint: $(TEST_VENV)/.installed-dev
	$(TEST_PY) -m ruff check .
	$(TEST_PY) -m ruff format --check .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +

# A marker file says which extras an environment has; a changed setup.py installs again.
$(VENV)/.installed-all: setup.py
	$(call environment,$(VENV))
	$(VENV)/bin/python -m pip install $(PIP_ARGS) --editable ".[all]"
	touch $@

$(TEST_VENV)/.installed-dev: setup.py
	$(call environment,$(TEST_VENV))
	$(TEST_VENV)/bin/python -m pip install $(PIP_ARGS) --editable ".[all,dev]"
	touch $@ $(TEST_VENV)/.installed-all

# LAVIS pins the libraries of 2023; tokenizers 0.13, one of them, has no wheel for Python 3.12.
$(LAVIS_VENV)/.installed:
	@$(LAVIS_PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11) and 'LAVIS needs Python 3.11; make lavis LAVIS_PYTHON=/path/to/python3.11')"
	test -x $(LAVIS_VENV)/bin/python || $(LAVIS_PYTHON) -m venv $(LAVIS_VENV)
	$(LAVIS_VENV)/bin/python -m pip install $(PIP_ARGS) torch==2.15.0 torchvision==0.29.2 "numpy<2" salesforce-lavis==1.0.2 safetensors
	touch $@

define environment
@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, $(PYTHON) is %d.%d; make PYTHON=python3.12 ...' % sys.version_info[:2])"
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef
