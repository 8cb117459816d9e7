# nginx is the one found in PATH, or NGINX_BIN=…; its headers are Debian's nginx-dev, or
# NGINX_SOURCE_DIR=…. One .so fits one nginx version, so other versions build elsewhere:
# see test-matrix. Never name a variable NGINX: nginx takes it for inherited sockets.

NGINX_BIN ?= nginx
OBJS ?= objs
CARGO_TARGET_DIR ?= target
MODULE = $(OBJS)/ngx_http_upsync_module.so

# Tests that prove runs, and how many at a time.
TESTS ?= t
JOBS ?= $(shell nproc)

# The other versions, and the tests of them that CI runs.
MATRIX = 1.26.3 1.30
MATRIX_QUICK ?= t/upsync.t t/kv.t t/reload.t t/dyups.t t/requests.t t/state.t t/lb.t t/sticky.t \
	t/check_types.t t/check_session.t t/check_status.t

export PATH := $(PATH):/usr/sbin:/usr/local/sbin
export NGINX_BIN NGINX_SOURCE_DIR CARGO_TARGET_DIR
unexport NGINX

CARGO_NGINX = tree=$$(tools/nginx-tree) && \
	NGINX_SOURCE_DIR=$$tree NGINX_BUILD_DIR=$$tree/objs cargo

PROVE = consul=$$(tools/consul) && \
	TEST_NGINX_BIN=$$(command -v $(NGINX_BIN)) TEST_NGINX_MODULE=$(abspath $(MODULE)) \
	TEST_CONSUL_BIN=$$consul prove -It/lib

.NOTPARALLEL:
.PHONY: build install demo run check test unit prove test-matrix test-matrix-quick \
	bench soak fuzz setup clean help

build:			## the module, objs/ngx_http_upsync_module.so
	$(CARGO_NGINX) build --release --locked
	tools/bit-fields "$$(tools/nginx-tree)" "$(CARGO_TARGET_DIR)"
	@mkdir -p $(OBJS)
	cp $(CARGO_TARGET_DIR)/release/libngx_http_upsync_module.so $(MODULE).new
	mv $(MODULE).new $(MODULE)

install: build		## the module into nginx's modules folder (DESTDIR is honoured)
	modules=$$($(NGINX_BIN) -V 2>&1 | sed -n 's/.*--modules-path=\([^ ]*\).*/\1/p'); \
	[ -n "$$modules" ] || { echo "nginx -V names no --modules-path"; exit 1; }; \
	install -D -m 644 $(MODULE) "$(DESTDIR)$$modules/$(notdir $(MODULE))"

demo: setup build	## a real Consul, two backends and nginx: the list changes, nginx follows
	tools/demo $(MODULE)

run: setup build	## the same, left running on 127.0.0.1:8080 until Ctrl-C
	tools/demo --run $(MODULE)

check: setup		## formatting and lints
	cargo fmt --check
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	$(CARGO_NGINX) clippy --locked --all-targets -- -D warnings

test: setup unit build prove	## unit tests, then t/ with nginx and Consul

unit:			## unit tests of the pure code, no nginx needed
	cargo test --locked --no-default-features

prove:			## t/ with the module as built; one test: make prove TESTS=t/sync.t
	$(PROVE) -j$(JOBS) $(TESTS)

test-matrix: test	## the whole of t/ on every supported nginx
	$(MAKE) matrix TESTS=t

test-matrix-quick: setup	## load, sync and reload on the other nginx versions
	$(MAKE) matrix TESTS="$(MATRIX_QUICK)"

matrix: $(MATRIX:%=matrix-%)

matrix-%:
	nginx=$$(tools/nginx-matrix $*) && \
	$(MAKE) build prove $$nginx OBJS=objs/$* CARGO_TARGET_DIR=target/$*

bench: setup build	## figures that hang on the machine's speed, kept in objs/bench.txt, .md and .json
	@mkdir -p $(OBJS)
	($(PROVE) -v t/latency.t t/zone.t t/churn.t t/writes.t t/names.t) 2>&1 | tee $(OBJS)/bench.txt
	@! grep -q '^Result: FAIL' $(OBJS)/bench.txt
	TEST_NGINX_BIN=$$(command -v $(NGINX_BIN)) TEST_NGINX_MODULE=$(abspath $(MODULE)) BENCH_OUT=$(OBJS) tools/bench

soak: setup build	## long runs: leaks over many cycles, reloads and kills, churn
	TEST_CYCLES=20000 TEST_TIMES=100 TEST_SECONDS=120 $(MAKE) prove JOBS=1 \
		TESTS="-v t/leak.t t/reload.t t/churn.t"
	TEST_CYCLES=100000 TEST_TIMES=300 $(MAKE) prove JOBS=1 TESTS="-v t/posted.t t/state.t"
	TEST_REQUESTS=1000000 TEST_SECONDS=120 TEST_TIMES=500 $(MAKE) prove JOBS=1 \
		TESTS="-v t/counts.t t/methods_churn.t t/protocols.t t/websocket.t"
	TEST_SECONDS=60 TEST_TIMES=100 $(MAKE) prove JOBS=1 \
		TESTS="-v t/check_many.t t/check_churn.t t/check_load.t"

fuzz:			## property tests with many more cases
	PROPTEST_CASES=$${PROPTEST_CASES:-100000} cargo test --release --locked --no-default-features

setup:			## installs what is missing from Debian's packages
	@tools/setup

clean:
	rm -rf objs target

help:			## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | expand -t 20
