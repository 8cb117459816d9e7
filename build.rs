//! Turns what nginx was configured with into cfgs named after the capability.

use std::env;

/// nginx's own feature macros that the code asks for, as `nginx-sys` reports them.
const CAPABILITIES: [(&str, &str); 1] = [("http_ssl", "nginx_http_ssl")];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for (_, cfg) in CAPABILITIES {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
    }
    if env::var_os("CARGO_FEATURE_NGINX").is_none() {
        return;
    }
    let features = env::var("DEP_NGINX_FEATURES").unwrap_or_default();
    for (feature, cfg) in CAPABILITIES {
        if features.split(',').any(|f| f.trim() == feature) {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
    compile_c();
    // A worker's exit closes the module while its watcher threads still run: the code must stay.
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
}

/// What only C can say: see `src/ngx/request.c`.
fn compile_c() {
    println!("cargo:rerun-if-changed=src/ngx/request.c");
    let include = env::var_os("DEP_NGINX_INCLUDE").unwrap_or_default();
    let mut c = cc::Build::new();
    c.file("src/ngx/request.c").includes(env::split_paths(&include)).warnings(false);
    for flag in env::var("DEP_NGINX_CFLAGS").unwrap_or_default().split_whitespace() {
        c.flag_if_supported(flag);
    }
    c.compile("upsync_request");
}
