//! Random text for ids and tokens, always straight from the kernel.

/// `length` lower-case letters and digits.
///
/// # Panics
/// When the kernel's generator is unusable, in which case no secret could be made at all.
pub(crate) fn alphanumeric(length: usize) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(length);
    while text.len() < length {
        for byte in bytes::<32>() {
            // 252 is the largest multiple of 36 in a byte: no character is more likely than another.
            if byte < 252 && text.len() < length {
                text.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
            }
        }
    }
    text
}

/// `2 * N` lower-case hexadecimal digits.
pub(crate) fn hex<const N: usize>() -> String {
    bytes::<N>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `N` bytes.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random generator works");
    bytes
}
