//! Secrets are compared here and nowhere else.
//!
//! A comparison that ends at the first difference tells whoever measures it how much of a guess was right. Host and guest compare
//! what strangers show them, so both use this.

use subtle::ConstantTimeEq as _;

/// Whether two secrets are equal, in a time that depends on their lengths only.
pub fn equal(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

#[cfg(test)]
mod tests {
    use super::equal;

    #[test]
    fn secrets_are_equal_when_every_byte_is() {
        for (left, right, same) in [
            ("", "", true),
            ("abc", "abc", true),
            ("abc", "abd", false),
            ("abc", "bbc", false),
            ("abc", "ab", false),
            ("", "a", false),
        ] {
            assert_eq!(equal(left.as_bytes(), right.as_bytes()), same, "{left} {right}");
        }
    }
}
