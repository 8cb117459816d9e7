//! Turns what nginx was configured with into cfgs named after the capability.

use std::path::PathBuf;
use std::{env, fs};

/// nginx's own feature macros that the code asks for, as `nginx-sys` reports them.
const CAPABILITIES: [(&str, &str); 1] = [("http_ssl", "nginx_http_ssl")];

/// What else differs, with the macro that nginx's headers define where they have it.
const MACROS: [(&str, &str); 3] = [
    // Regular expressions.
    ("NGX_PCRE", "nginx_pcre"),
    // Fields of a peer's connection for `sticky`.
    ("NGX_HTTP_UPSTREAM_SID", "nginx_peer_sid"),
    // The parameter `drain` of `server`.
    ("NGX_HTTP_UPSTREAM_DRAINING", "nginx_server_drain"),
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for (_, cfg) in CAPABILITIES.iter().chain(&MACROS) {
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
    for (name, cfg) in MACROS {
        if is_defined(name) {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
    compile_c();
    // A worker's exit closes the module while its watcher threads still run: the code must stay.
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
}

/// Whether nginx's headers define a macro.
fn is_defined(name: &str) -> bool {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(format!("{name}.c"));
    let headers = "#include <ngx_config.h>\n#include <ngx_core.h>\n#include <ngx_http.h>\n";
    let text = format!("{headers}#ifdef {name}\nupsync_is_defined\n#endif\n");
    if fs::write(&out, text).is_err() {
        return false;
    }
    let expanded = c().file(&out).expand();
    String::from_utf8_lossy(&expanded).contains("upsync_is_defined")
}

/// What only C can say: see `src/ngx/request.c`.
fn compile_c() {
    println!("cargo:rerun-if-changed=src/ngx/request.c");
    c().file("src/ngx/request.c").compile("upsync_request");
}

/// A compiler with nginx's headers and flags.
fn c() -> cc::Build {
    let include = env::var_os("DEP_NGINX_INCLUDE").unwrap_or_default();
    let mut c = cc::Build::new();
    c.includes(env::split_paths(&include)).warnings(false);
    for flag in env::var("DEP_NGINX_CFLAGS").unwrap_or_default().split_whitespace() {
        c.flag_if_supported(flag);
    }
    c
}
