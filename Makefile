# What one does with Waxwing: run it, see it work, test it, measure it. `make help` lists the targets.

CARGO ?= cargo
FILE ?=
BLOBS ?=
WAXWING := target/release/waxwing

.PHONY: help run demo build install test lint bench interop soak clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## the binary, optimised: target/release/waxwing
	$(CARGO) build --release --locked --bin waxwing

run: build ## a service with every role on 127.0.0.1:8460; prints what to type next
	@exec $(WAXWING) dev

demo: build ## one file from alice to bob, compared byte for byte (FILE=photo.jpg, else 64 MiB of noise; BLOBS=s3: in a bucket)
	@$(if $(filter s3,$(BLOBS)),infra/demo-s3.sh $(WAXWING),$(WAXWING) demo) $(if $(FILE),"$(FILE)")

install: ## the binary into cargo's bin directory
	$(CARGO) install --locked --path .

lint: ## formatting, clippy and documentation, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --features fault-injection -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

# The fault switches are built into the tests' binary, never into a release: the harness must be able to fail.
test: lint ## everything that CI runs: lint, unit, engine-suite and end-to-end tests
	@infra/install-nextest.sh
	@infra/install-clients.sh
	@infra/install-fault-tools.sh
	@infra/install-seaweedfs.sh
	@infra/install-postgres.sh
	$(CARGO) nextest run --locked --workspace --features fault-injection

soak: ## every parser fuzzed without end, another seed each turn; says how many inputs (Ctrl-C ends it)
	@infra/soak.sh

interop: ## our blobs opened by Google Tink's Python library and the other way round (needs python3)
	src/seal/vectors/interop.sh

bench: build ## throughput, one JSON line a figure, upload beside the disk itself, also in target/bench/
	@mkdir -p target/bench
	$(CARGO) bench --locked -p waxwing-seal --bench seal | tee target/bench/client.jsonl
	@$(WAXWING) --json bench upload --dir target/bench | tee target/bench/upload.jsonl
	@for name in edge messages latency connections drain; do \
		$(WAXWING) --json bench $$name --dir target/bench | tee target/bench/$$name.jsonl; done

clean: ## what was built
	$(CARGO) clean
