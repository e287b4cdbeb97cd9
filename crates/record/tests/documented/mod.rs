//! The examples in the documents of the formats.

/// The bytes of the fenced block ```` ```hex NAME ```` of a format document, as one hex string.
/// What follows a `;` on a line is a comment.
pub(crate) fn documented(document: &str, name: &str) -> String {
    let opening = format!("```hex {name}\n");
    let (_, block) = document
        .split_once(&opening)
        .unwrap_or_else(|| panic!("the document has no example {name}"));
    let (block, _) = block.split_once("```").expect("the block ends");
    block
        .lines()
        .flat_map(|line| line.split(';').next().unwrap_or_default().chars())
        .filter(|c| !c.is_whitespace())
        .collect()
}

/// Bytes in hex, lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
