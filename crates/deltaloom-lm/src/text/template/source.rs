//! `{% generation %}` and `{% endgeneration %}` mark what a model wrote, for training. They change
//! no text. The template engine does not know them, so they become empty conditions, which trim
//! white space around them in the same way.

/// The template with an empty condition for every `generation` tag.
pub(super) fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let word = inside.trim_matches(['-', '+']).trim();
        if word == "generation" || word == "endgeneration" {
            let mark =
                |mark: Option<char>| mark.filter(|c| "-+".contains(*c)).map_or(String::new(), String::from);
            let (left, right) = (mark(inside.chars().next()), mark(inside.chars().last()));
            out.push_str(&format!("{{%{left} if true %}}{{% endif {right}%}}"));
        } else {
            out.push_str(&tag[..end + 2]);
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::without_generation;

    #[test]
    fn only_generation_tags_change() {
        let kept = "{% if generation %}{{ '{%' }}{% endif %}{# {% #} text {%";
        assert_eq!(without_generation(kept), kept);
        assert_eq!(
            without_generation("a{%- generation +%}b{% endgeneration %}"),
            "a{%- if true %}{% endif +%}b{% if true %}{% endif %}"
        );
    }
}
