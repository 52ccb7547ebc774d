//! From a web page to what is worth reading of it.

use std::rc::Rc;

use htmd::HtmlToMarkdown;
use markup5ever_rcdom::{Node, NodeData};
use selfsame_net::reqwest::Url;

use super::dom;

/// Longest title, in characters.
const MAX_TITLE: usize = 300;
/// A link's text may be as long as it likes, its address not.
const MAX_LINK: usize = 2048;

/// A page as Markdown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub title: Option<String>,
    pub text: String,
    /// Not cut off because it is too large.
    pub whole: bool,
}

/// Reads a page that was found at `url`. Takes a while for a large one: not for an async thread.
pub(super) fn read(html: &str, url: &Url) -> Page {
    let (document, whole) = dom::parse(html);
    let base = find(&document, "base")
        .and_then(|base| dom::attribute(&base, "href"))
        .and_then(|href| url.join(&href).ok())
        .unwrap_or_else(|| url.clone());
    let title = find(&document, "title")
        .map(|title| collapse(&dom::text(&title), MAX_TITLE))
        .filter(|title| !title.is_empty());
    tidy(&document, &base);
    let body = find(&document, "body").unwrap_or_else(|| document.clone());
    let content = find(&body, "main").filter(|main| {
        // A page that keeps most of its text elsewhere does not mean it.
        dom::text(main).trim().len() * 3 > dom::text(&body).trim().len()
    });
    let converter = HtmlToMarkdown::builder()
        .options(htmd::options::Options {
            bullet_list_marker: htmd::options::BulletListMarker::Dash,
            ul_bullet_spacing: 1,
            ol_number_spacing: 1,
            ..htmd::options::Options::default()
        })
        .build();
    let text = converter.tree_to_markdown(&content.unwrap_or(body));
    Page {
        title,
        text: blank_lines(&text),
        whole,
    }
}

/// What is not part of what a page says.
fn is_clutter(node: &Rc<Node>) -> bool {
    let Some(tag) = dom::tag(node) else {
        return matches!(
            node.data,
            NodeData::Comment { .. } | NodeData::ProcessingInstruction { .. }
        );
    };
    let clutter = matches!(
        tag,
        "script"
            | "style"
            | "template"
            | "head"
            | "nav"
            | "footer"
            | "dialog"
            | "iframe"
            | "frame"
            | "object"
            | "embed"
            | "svg"
            | "math"
            | "canvas"
            | "audio"
            | "video"
            | "map"
            | "button"
            | "input"
            | "select"
            | "textarea"
    );
    let role = || {
        dom::attribute(node, "role").is_some_and(|role| {
            matches!(
                role.as_str(),
                "navigation" | "contentinfo" | "search" | "dialog" | "alertdialog"
            )
        })
    };
    clutter
        || dom::attribute(node, "hidden").is_some()
        || dom::attribute(node, "aria-hidden").is_some_and(|hidden| hidden == "true")
        || role()
}

/// Drops the clutter and makes every address a whole one.
fn tidy(document: &Rc<Node>, base: &Url) {
    let mut open = vec![document.clone()];
    while let Some(node) = open.pop() {
        node.children
            .borrow_mut()
            .retain(|child| !is_clutter(child));
        open.extend(node.children.borrow().iter().cloned());
        let NodeData::Element { attrs, .. } = &node.data else {
            continue;
        };
        let is_image = dom::tag(&node) == Some("img");
        attrs.borrow_mut().retain_mut(|attr| {
            let wanted: &[&str] = if is_image { &["src"] } else { &["href"] };
            if wanted.contains(&&*attr.name.local) {
                let Some(link) = absolute(base, &attr.value) else {
                    return false;
                };
                attr.value = link.into();
            }
            // What a Markdown writer makes of the others is noise.
            wanted.contains(&&*attr.name.local)
                || matches!(&*attr.name.local, "alt" | "class" | "start" | "align")
        });
    }
}

/// An address that can be fetched, if it is one.
fn absolute(base: &Url, link: &str) -> Option<String> {
    let url = base.join(link.trim()).ok()?;
    let known = matches!(url.scheme(), "http" | "https" | "mailto" | "ftp");
    (known && url.as_str().len() <= MAX_LINK).then(|| url.to_string())
}

/// The first element of this name, in the order of the page.
fn find(from: &Rc<Node>, name: &str) -> Option<Rc<Node>> {
    let mut open = vec![from.clone()];
    while let Some(node) = open.pop() {
        if dom::tag(&node) == Some(name) {
            return Some(node);
        }
        open.extend(node.children.borrow().iter().rev().cloned());
    }
    None
}

/// One line of at most `limit` characters.
pub(super) fn collapse(text: &str, limit: usize) -> String {
    let mut line = String::new();
    for (count, c) in text
        .split_whitespace()
        .flat_map(|word| [" ", word])
        .skip(1)
        .flat_map(str::chars)
        .enumerate()
    {
        if count == limit {
            line.push('…');
            break;
        }
        line.push(c);
    }
    line
}

/// No more than one empty line at a time, and none at the ends.
fn blank_lines(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut empty = 0;
    for line in text.lines() {
        if line.trim().is_empty() {
            empty += 1;
            continue;
        }
        if !kept.is_empty() {
            kept.push_str(if empty > 0 { "\n\n" } else { "\n" });
        }
        kept.push_str(line.trim_end_matches([' ', '\t']));
        // Two spaces at the end break a line.
        if line.ends_with("  ") && !line.trim().is_empty() {
            kept.push_str("  ");
        }
        empty = 0;
    }
    kept.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn page(html: &str) -> Page {
        read(html, &Url::parse("https://example.com/a/b?c#d").unwrap())
    }

    #[test]
    fn a_page_becomes_what_it_says() {
        let page = page(
            r##"<!doctype html><html><head><title> On
              &amp; off </title><style>p{}</style></head><body>
              <nav><a href="/home">Home</a></nav><!-- note -->
              <header><h1>Switches</h1></header>
              <script>alert("x")</script><noscript><p>No scripts.</p></noscript>
              <p>They are <b>on</b> or <a href="../off?x=1" onclick="y()">off</a>.</p>
              <p hidden>secret</p><svg><text>drawn</text></svg>
              <ul><li>one</li><li>two <a href="javascript:alert(1)">click</a></li></ul>
              <img src="i.png" alt="A switch"><img src="data:image/png;base64,AAAA" alt="inline">
              <pre><code class="language-rust">fn main() {}
              </code></pre>
              <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
              <form><label>Name</label><input value="v"></form>
              <footer>Imprint</footer></body></html>"##,
        );
        assert_eq!(page.title.as_deref(), Some("On & off"));
        assert!(page.whole);
        let text = page.text;
        for part in [
            "# Switches",
            "They are **on** or [off](https://example.com/off?x=1).",
            "- one\n- two click",
            "![A switch](https://example.com/a/i.png)",
            "No scripts.",
            "fn main() {}",
            "| 1",
            "Name",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        for part in [
            "Home", "alert", "secret", "drawn", "Imprint", "base64", "onclick", "note", "p{}",
        ] {
            assert!(!text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn the_main_part_is_preferred_if_it_is_one() {
        let long = "Word. ".repeat(100);
        let html = format!("<body><div>Menu</div><main><p>{long}</p></main></body>");
        assert!(!page(&html).text.contains("Menu"));
        let html = format!("<body><div>{long}</div><main><p>Ad</p></main></body>");
        assert!(page(&html).text.contains("Word."));
    }

    #[test]
    fn links_start_where_the_page_says() {
        let html = r#"<base href="https://cdn.example.org/x/"><a href="y">z</a>"#;
        assert_eq!(page(html).text, "[z](https://cdn.example.org/x/y)");
        // A base that is none is no base.
        let html = r#"<base href="http://["><a href="y">z</a>"#;
        assert_eq!(page(html).text, "[z](https://example.com/a/y)");
    }

    #[test]
    fn what_is_no_page_is_no_trouble() {
        assert_eq!(page("").text, "");
        assert_eq!(page("plain & simple").text, "plain & simple");
        assert_eq!(page("<p>\u{0}x<p").text, "x");
        assert_eq!(page("<title>only</title>").title.as_deref(), Some("only"));
        let long = format!("<title>{}</title>", "t".repeat(5000));
        assert_eq!(page(&long).title.unwrap().chars().count(), MAX_TITLE + 1);
    }

    /// Each of these makes something quadratic, recursive or endless somewhere.
    #[test]
    fn hostile_pages_end_soon() {
        let many = |piece: &str, times: usize| piece.repeat(times);
        let numbered = |piece: &str, times: usize| {
            (0..times)
                .map(|n| piece.replace('#', &n.to_string()))
                .collect::<String>()
        };
        for (name, html) in [
            ("deep", many("<div>", 15_000) + "bottom"),
            ("deep lists", many("<ul><li>", 15_000) + "bottom"),
            ("deep quotes", many("<blockquote>", 15_000) + "bottom"),
            ("deep tables", many("<table><tr><td>", 15_000) + "bottom"),
            ("deep templates", many("<template>", 15_000)),
            (
                "reopened",
                numbered("<b id=#>", 4_000) + &many("<p>x</p>", 15_000),
            ),
            ("fostered", format!("<table>{}", many("<i>x</i>y", 15_000))),
            ("misnested", many("<a><b><p></a></b>", 15_000)),
            ("siblings", many("<b>x</b>", 15_000)),
            ("items", format!("<ol>{}</ol>", many("<li>x", 15_000))),
            ("cells", format!("<table><tr>{}", many("<td>x", 15_000))),
            ("rows", format!("<table>{}", many("<tr><td>x", 15_000))),
            ("comments", many("<!-- x -->", 15_000)),
            ("open comment", "<!--".to_owned() + &many("x", 1_000_000)),
            ("attributes", format!("<p {}>", numbered("a# ", 15_000))),
            ("options", format!("<select>{}", many("<option>x", 15_000))),
            ("entities", many("&amp;&#x41;&bogus", 15_000)),
            ("pre", "<pre>".to_owned() + &many("<b>\n", 15_000)),
        ] {
            let began = Instant::now();
            let page = page(&html);
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "{name}: {:?}",
                began.elapsed()
            );
            assert!(
                page.text.len() <= html.len() * 20,
                "{name}: {}",
                page.text.len()
            );
        }
        assert!(!page(&many("<br>", 60_000)).whole);
        assert!(
            page(&(many("<div>", 1000) + "bottom"))
                .text
                .contains("bottom")
        );
    }
}
