//! The page of `upsync_status`: a document that fetches the JSON of the same address and shows it.
//!
//! All of it is in the one document: `page/page.html` with the style of `page/page.css` and the
//! script of `page/page.js`. Nothing of it changes from one answer to the next, so the policy can
//! name style and script by their hashes, and nothing else runs.
#![forbid(unsafe_code)]

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");

static PAGE: LazyLock<String> = LazyLock::new(|| put_together(HTML, CSS, JS));

static POLICY: LazyLock<String> = LazyLock::new(|| policy_of(CSS, JS));

/// The document, in UTF-8. It is the same for each request.
pub fn page() -> &'static str {
    &PAGE
}

/// The value of the field `Content-Security-Policy` that goes with [`page`].
pub fn policy() -> &'static str {
    &POLICY
}

fn put_together(html: &str, css: &str, js: &str) -> String {
    html.replacen("{css}", css, 1).replacen("{js}", js, 1)
}

fn policy_of(css: &str, js: &str) -> String {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source(js),
        source(css)
    )
}

/// A text as a policy names it.
fn source(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is between the only two such tags.
    fn element(name: &str) -> &'static str {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        assert_eq!(page().matches(&format!("<{name}")).count(), 1, "one {name}");
        assert_eq!(page().matches(&close).count(), 1, "which ends once");
        let (_, rest) = page().split_once(&open).unwrap();
        rest.split_once(&close).unwrap().0
    }

    #[test]
    fn it_holds_all_three_files() {
        assert_eq!((element("style"), element("script")), (CSS, JS));
        for mark in ["{css}", "{js}"] {
            assert_eq!((HTML.matches(mark).count(), page().matches(mark).count()), (1, 0));
        }
        assert!(page().starts_with("<!DOCTYPE html>\n") && page().ends_with("</html>\n"));
        assert!(page().len() < 64 << 10, "{} bytes", page().len());
        // A browser hashes what it has read, and it reads these as something else.
        assert!(!page().contains(['\r', '\0']));
    }

    #[test]
    fn the_policy_names_what_is_in_it() {
        for (directive, name) in [("script-src", "script"), ("style-src", "style")] {
            let said = format!("; {directive} '{}'; ", source(element(name)));
            assert!(policy().contains(&said), "{said} in {}", policy());
        }
        assert!(policy().starts_with("default-src 'none'; script-src 'sha256-"));
        assert!(!policy().contains("unsafe"));
    }

    #[test]
    fn hashes_are_those_of_browsers() {
        // The example of CSP 3, 8.2.
        let hash = "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=";
        assert_eq!(source("alert('Hello, world.');"), hash);
    }

    #[test]
    fn nothing_comes_from_outside() {
        let page = page().to_lowercase();
        for forbidden in
            ["http:", "https:", "//cdn", "src=", "@import", "url(", "<link", "<img", "<iframe"]
        {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        for (at, _) in page.match_indices("href=") {
            assert!(page[at..].starts_with("href=\"?format="), "{}", &page[at..at + 40]);
        }
    }

    #[test]
    fn the_policy_leaves_nothing_of_it_out() {
        let html = HTML.to_lowercase();
        for attribute in [" style=", " onclick=", " onload=", " onerror=", "javascript:"] {
            assert!(!html.contains(attribute), "{attribute}");
        }
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "'style'",
        ] {
            assert!(!JS.contains(forbidden), "{forbidden}");
        }
    }

    /// The script finds all that it looks for in the document.
    #[test]
    fn names_of_the_script_are_in_the_document() {
        for (start, end, written) in
            [("$('", "'", "id"), ("copyOf('", "'", "id"), ("put(row, '", "'", "data-cell")]
        {
            for part in JS.split(start).skip(1) {
                let name = part.split(end).next().unwrap();
                assert!(HTML.contains(&format!(" {written}=\"{name}\"")), "{written} {name}");
            }
        }
    }
}
