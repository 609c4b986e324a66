//! The body of `PUT /cpu-config`: a custom CPU template, checked for shape and otherwise without effect.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de::Error as _};

/// A template in place or in a file, as a configuration file may have it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum CustomCpuTemplateOrPath {
    Path(PathBuf),
    Template(#[expect(dead_code, reason = "checked for shape; no CPU is behind it")] CustomCpuTemplate),
}

/// A custom CPU template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CustomCpuTemplate {
    #[serde(default)]
    pub kvm_capabilities: Vec<KvmCapability>,
    #[serde(default)]
    pub cpuid_modifiers: Vec<CpuidLeafModifier>,
    #[serde(default)]
    pub msr_modifiers: Vec<RegisterModifier>,
}

/// A KVM capability to ask for, or with `!` not to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KvmCapability;

impl<'de> Deserialize<'de> for KvmCapability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.strip_prefix('!').unwrap_or(&text);
        match number.parse::<u32>() {
            Ok(_) => Ok(Self),
            Err(error) => Err(D::Error::custom(format!(
                "Failed to parse string [{text}] as a kvm capability - can not convert to numeric: {error}"
            ))),
        }
    }
}

/// Changes to one CPUID leaf. Unknown fields are let through, as Firecracker does for this type.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct CpuidLeafModifier {
    leaf: Number,
    subleaf: Number,
    flags: u32,
    modifiers: Vec<CpuidRegisterModifier>,
}

/// A change to one register of a leaf.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct CpuidRegisterModifier {
    register: CpuidRegister,
    bitmap: Bitmap<32>,
}

/// A change to a model-specific register.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct RegisterModifier {
    addr: Number,
    bitmap: Bitmap<64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CpuidRegister;

impl<'de> Deserialize<'de> for CpuidRegister {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "eax" | "ebx" | "ecx" | "edx" => Ok(Self),
            _ => Err(D::Error::custom("Invalid CPUID register. Must be one of [eax, ebx, ecx, edx]")),
        }
    }
}

/// A number of 32 bits in text, with 0x or 0b in front.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Number;

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = match (text.strip_prefix("0b"), text.strip_prefix("0x")) {
            (Some(digits), _) => u32::from_str_radix(digits, 2),
            (_, Some(digits)) => u32::from_str_radix(digits, 16),
            _ => {
                return Err(D::Error::custom(format!(
                    "No supported number system prefix found in value [{text}]. Make sure to prefix the number with \
                     '0x' for hexadecimal numbers or '0b' for binary numbers."
                )));
            }
        };
        match parsed {
            Ok(_) => Ok(Self),
            Err(error) => Err(D::Error::custom(format!(
                "Failed to parse string [{text}] as a number for CPU template - {error:?}"
            ))),
        }
    }
}

/// Bits to set (1), clear (0) or leave (x); `_` may separate them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bitmap<const BITS: usize>;

impl<'de, const BITS: usize> Deserialize<'de> for Bitmap<BITS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = |why: String| {
            Err(D::Error::custom(format!("Failed to parse string [{text}] as a bitmap - {why}")))
        };
        let mut count = 0;
        for digit in text.strip_prefix("0b").unwrap_or(&text).bytes().rev() {
            if count == BITS {
                return wrong("string is too long".to_owned());
            }
            match digit {
                b'_' => continue,
                b'x' | b'0' | b'1' => count += 1,
                other => return wrong(format!("unknown character: {other}")),
            }
        }
        Ok(Self)
    }
}
