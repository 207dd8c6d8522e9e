"""The medical tables from which `embedded.py` writes its rows; written for this package, plain textbook facts.

Few entries on purpose: a small model sees each often enough in a few dozen steps for its answers to improve.
"""

from __future__ import annotations

from typing import NamedTuple


class Condition(NamedTuple):
    """A diagnosis: the organ system, whose other members are never offered as wrong answers, and its findings.

    Each of `signs` points to the condition by itself; `others` go with it and with much else.
    """

    name: str
    system: str
    ages: tuple[int, int]
    signs: tuple[str, ...]
    others: tuple[str, ...]


class Caution(NamedTuple):
    """A drug to avoid given one of `histories`, and one for the same purpose that they do not rule out."""

    avoid: str
    prefer: str
    purpose: str
    ages: tuple[int, int]
    histories: tuple[str, ...]
    why: str
    sex: str = ""


class LabTest(NamedTuple):
    """A laboratory value with its reference range; values are multiples of `step` within [lowest, highest]."""

    name: str
    unit: str
    low: float
    high: float
    lowest: float
    highest: float
    step: float


# The names begin with different letters, so that any of them can stand beside any other as a choice.
CONDITIONS = (
    Condition(
        "Appendicitis", "abdomen", (9, 45),
        ("pain that moved from the navel to the right lower abdomen", "rebound tenderness in the right iliac fossa"),
        ("loss of appetite", "one episode of vomiting", "a low-grade fever"),
    ),
    Condition(
        "Kidney stone", "urinary", (22, 64),
        ("colicky flank pain radiating to the groin", "a bright opacity in the ureter on a CT scan"),
        ("blood in the urine", "inability to lie still", "nausea"),
    ),
    Condition(
        "Pneumonia", "chest", (24, 86),
        ("a cough bringing up rusty sputum", "consolidation in the right lower lobe on chest X-ray"),
        ("fever with chills", "bronchial breathing at the right base", "pain on deep breathing"),
    ),
    Condition(
        "Tuberculosis", "chest", (21, 68),
        ("coughing up blood with drenching night sweats", "acid-fast bacilli in the sputum"),
        ("weight loss over months", "a cavity in the upper lobe", "a close contact with the same illness"),
    ),
    Condition(
        "Heart failure", "chest", (55, 90),
        ("breathlessness when lying flat with swollen ankles", "an ejection fraction of 25% in a dilated ventricle"),
        ("a raised jugular venous pressure", "crackles at both lung bases", "waking breathless at night"),
    ),
    Condition(
        "Meningitis", "nervous", (16, 52),
        ("neck stiffness with photophobia", "many neutrophils in the cerebrospinal fluid"),
        ("a severe headache", "fever with drowsiness", "vomiting"),
    ),
    Condition(
        "Bell palsy", "nervous", (19, 62),
        ("sudden weakness of one whole side of the face", "inability to close one eye or wrinkle the brow above it"),
        ("altered taste", "sounds seeming loud in one ear", "normal strength in the limbs"),
    ),
    Condition(
        "Gout", "joints", (42, 76),
        ("a hot, red and exquisitely painful big toe", "needle-shaped urate crystals in the joint fluid"),
        ("a meal of red meat and beer the day before", "use of a thiazide", "earlier attacks that settled"),
    ),
    Condition(
        "Rheumatoid arthritis", "joints", (31, 67),
        ("symmetrical swelling of the small hand joints", "antibodies against citrullinated peptides"),
        ("morning stiffness for two hours", "tiredness", "nodules at the elbow"),
    ),
    Condition(
        "Diabetes mellitus", "hormones", (30, 72),
        ("marked thirst and frequent urination", "a fasting glucose of 212 mg/dL on two occasions"),
        ("blurred vision", "recurrent thrush", "weight loss"),
    ),
    Condition(
        "Iron deficiency", "blood", (18, 68),
        ("craving for ice with spoon-shaped nails", "small pale red cells with a very low ferritin"),
        ("tiredness on climbing stairs", "slow blood loss for months", "pale conjunctivae"),
    ),
    Condition(
        "Shingles", "skin", (50, 86),
        ("a painful blistering rash in one dermatome", "grouped vesicles that stop at the midline"),
        ("burning pain before the rash", "chickenpox in childhood", "tingling of the skin"),
    ),
)  # fmt: skip

CAUTIONS = (
    Caution("Propranolol", "Amlodipine", "high blood pressure", (22, 60),
            ("severe asthma with two admissions last year", "brittle asthma treated with daily inhalers"),
            "a beta blocker can provoke bronchospasm"),
    Caution("Warfarin", "Heparin", "a venous thrombosis", (20, 39),
            ("a pregnancy of nine weeks", "a first pregnancy confirmed this week"),
            "it crosses the placenta and can cause malformations", "woman"),
    Caution("Ibuprofen", "Codeine", "knee pain", (35, 80),
            ("a bleeding stomach ulcer last month", "a duodenal ulcer that bled recently"),
            "it can make an ulcer bleed again"),
    Caution("Metformin", "Insulin", "type 2 diabetes", (48, 82),
            ("an estimated GFR of 18 mL/min", "advanced kidney failure before dialysis"),
            "in kidney failure it can cause lactic acidosis"),
    Caution("Nitrofurantoin", "Fosfomycin", "a bladder infection", (45, 84),
            ("an estimated GFR of 15 mL/min", "end-stage kidney failure on dialysis"),
            "it does not reach the urine and accumulates in kidney failure"),
    Caution("Sildenafil", "Alprostadil", "erectile dysfunction", (45, 74),
            ("daily isosorbide mononitrate for angina", "nitroglycerin spray used every day"),
            "with a nitrate it can cause a dangerous fall in blood pressure", "man"),
    Caution("Bupropion", "Sertraline", "depression", (20, 62),
            ("epilepsy with a fit last month", "a seizure disorder treated with lamotrigine"),
            "it lowers the seizure threshold"),
    Caution("Verapamil", "Digoxin", "fast atrial fibrillation", (56, 85),
            ("an ejection fraction of 25%", "systolic heart failure with a weak left ventricle"),
            "it depresses a failing ventricle"),
    Caution("Gentamicin", "Ceftriaxone", "a kidney infection", (24, 70),
            ("myasthenia gravis on pyridostigmine", "myasthenia gravis with double vision"),
            "it weakens neuromuscular transmission further"),
    Caution("Oxybutynin", "Mirabegron", "an overactive bladder", (55, 83),
            ("an attack of angle-closure glaucoma", "narrow-angle glaucoma awaiting treatment"),
            "it can raise the pressure in the eye"),
)  # fmt: skip

# Drugs whose allergy a note can report; every one is offered beside others that begin with other letters.
ALLERGENS = (
    "Amoxicillin", "Doxycycline", "Cefalexin", "Erythromycin", "Vancomycin", "Sulfadiazine",
    "Ibuprofen", "Tramadol", "Phenytoin", "Lamotrigine", "Heparin", "Metronidazole",
)  # fmt: skip
REACTIONS = (
    "an itchy rash", "swelling of the lips", "wheezing and hives", "an anaphylactic shock",
    "a blistering rash", "swelling of the throat",
)  # fmt: skip
COMPLAINTS = (
    "a sore throat", "a chest infection", "a swollen knee", "a fever", "a painful ear", "a sinus infection",
    "an infected wound", "a dental abscess", "back pain", "a skin abscess",
)  # fmt: skip

LAB_TESTS = (
    LabTest("serum sodium", "mmol/L", 135, 145, 112, 168, 1),
    LabTest("serum potassium", "mmol/L", 3.5, 5.0, 2.1, 7.6, 0.1),
    LabTest("fasting glucose", "mg/dL", 70, 99, 38, 310, 1),
    LabTest("platelet count", "x10^9/L", 150, 400, 22, 910, 1),
    LabTest("white cell count", "x10^9/L", 4.0, 11.0, 0.9, 29.0, 0.1),
    LabTest("serum creatinine", "mg/dL", 0.6, 1.2, 0.2, 7.8, 0.1),
    LabTest("serum calcium", "mg/dL", 8.5, 10.5, 5.9, 14.8, 0.1),
    LabTest("resting heart rate", "beats/min", 60, 100, 31, 178, 1),
    LabTest("haemoglobin", "g/dL", 12.0, 17.0, 5.2, 21.5, 0.1),
)
