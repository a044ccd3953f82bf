r"""Kinds of answers that graders get wrong: a gold answer, what must be accepted for it, what must be refused.

Beside ``math_pairs`` (single traps that others reported), this has several instances of each kind. A completion that
states no answer by itself here is put into a box.
"""

from typing import NamedTuple


class Case(NamedTuple):
    gold: str
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()


KINDS: dict[str, list[Case]] = {
    "powers with two asterisks": [
        Case("23", (), ("2**3", "2^3", "**2**3")),
        Case("8", ("**8**",), ("2**3",)),
        Case("2x", ("x*2", r"2 \cdot x"), ("x**2", "2**x", "x^2")),
        Case("x^2", ("x**2", "x*x"), ("2x", "x*2", "x2")),
        Case("2**n", ("2^n", "2^{n}", "2**n"), ("2n", "n**2")),
        Case("x**3+1", ("1+x^3",), ("x*3+1", "3x+1")),
    ],
    "functions over a wide range": [
        Case("|x-5|", ("|5-x|", r"\lvert x-5\rvert"), ("5-x", "x-5")),
        Case("5-x", ("-x+5",), ("|x-5|", "|5-x|")),
        Case(r"\lfloor n/10 \rfloor", (r"\left\lfloor \frac{n}{10} \right\rfloor",), (r"\lfloor n/20 \rfloor", "0", "n/10")),
        Case("|x-100|", (), ("100-x", "x-100")),
        Case(r"\lceil x/50 \rceil", (), (r"\lceil x/40 \rceil", "1")),
        Case("|x+40|", ("|-40-x|",), ("x+40", "-x-40")),
        Case(r"\sqrt{(x-7)^2}", ("|x-7|",), ("7-x", "x-7")),
        Case(r"x^2+\lfloor x/30 \rfloor", (), ("x^2",)),
        Case(r"\max(x,4)", (), ("4",)),
    ],
    "words that are no units": [
        Case("3", ("3 units", "3 apples", "3 people"), ("3 halves", "3 thirds", "3 quarters", "3 tenths", "3 and a half")),
        Case("5", ("5 cm", "5 hours", "5 dollars"), ("5 squared", "5 cubed", "5 factorial", "5 dozen", "5 hundred", "5 thousand")),
        Case("5", (), ("5 million", "5 billion", "5 score", "5 pairs", "5 gross", "5 times 2", "5 less", "5 choose 2", "5 mod 7")),
        Case("7", ("7 students",), ("7 hundredths", "7 eighths", "7 lakh", "7 percent", "7 point 5", "7 minus 1", "7 below zero")),
        Case(r"\$5", ("5", "5 dollars", r"\$5.00", "$5$", "$5"), ("5 cents", "€5", "500 cents")),
        Case("5 cents", ("5", r"5 \text{ cents}"), (r"\$5", "5 dollars")),
        Case("2", (), ("2 halves", "2 twos", "2 squared", "2 root 3", "2 tens")),
        Case("10", ("10 miles", "10 mph", r"10 \text{ m/s}"), ("10 million", "10 to the third")),
        Case("5 cm", ("5", r"5\,\text{cm}"), ("5 m", "5 cm^2", "5 inches")),
        Case("30^\\circ", ("30", "30 degrees", r"30^{\circ}"), ("30 radians", r"30\pi")),
    ],
    "lists and thousands": [
        Case("100, 200", ("200, 100", "100 and 200", r"100,\ 200"), ("100200", "100,200", "100")),
        Case("100200", ("100,200", r"100{,}200", r"100\,200", r"100,\!200"), ("100, 200", "200, 100", "100 and 200")),
        Case("1,234", ("1234", "1,234", r"1{,}234"), ("1, 234", "234", "1")),
        Case("1, 234", ("234, 1", r"\{1, 234\}"), ("1234", "1,234")),
        Case("1,000, 2,000", ("1000, 2000", "2,000, 1,000"), ("1, 0, 2, 0", "10002000")),
        Case("(12,102)", ("(12, 102)",), ("12102", "(102, 12)", "(12102)")),
        Case("(2,12) \\cup (12,102)", ("(2, 12) \\cup (12, 102)",), ("(2,102)",)),
        Case("12, 1234", ("12,1234", "1234, 12"), ("121234",)),
        Case("1234567", ("1,234,567",), ("1, 234, 567", "1,234,56", "1234,567")),
    ],
    "roots": [
        Case(r"3\pi", ("π3",), ("√13π", r"\sqrt13\pi", "√3π")),
        Case(r"\sqrt{13}\pi", ("√13π", r"\pi\sqrt{13}", r"\sqrt{13} \pi", "√(13)π"), ("3\\pi", r"\sqrt{13\pi}", r"13\sqrt{\pi}")),
        Case("5\\sqrt{2}", ("5√2", "√50", "5√(2)", r"5\sqrt2", "5sqrt(2)"), ("5√3", "√5·2", r"\sqrt[5]{2}")),
        Case(r"\sqrt[3]{2}", (r"\sqrt[3]2", "2^{1/3}", r"2^{\frac13}"), (r"3\sqrt2", r"\sqrt{2}", r"\sqrt[3]{4}")),
        Case(r"\sqrt{21}", (r"\sqrt{3}\sqrt{7}", "√21"), (r"\sqrt{2}", r"\sqrt{12}", "21")),
    ],
    "golds of several boxes": [
        Case(r"\boxed{2} and \boxed{3}", ("2, 3", r"\boxed{2} and \boxed{3}", r"\{3, 2\}"), ("3", "2", r"\boxed{3}", "2, 4")),
        Case(r"Either \boxed{x=1} or we get \boxed{x=-4}.", ("1, -4", "x=1, x=-4"), ("-4", "x=-4", "1")),
        Case(r"The answer is \boxed{7}. So \boxed{7}.", ("7",), ("7, 8", "77")),
    ],
    "decimals and whole numbers": [
        Case("12345678", ("12345678.0", "12,345,678"), ("12345679.0", "12345678.1", "12345679")),
        Case("12345678.0", ("12345678",), ("12345679", "12345677.0")),
        Case("1000000", ("1e6", r"10^6", r"1 \times 10^{6}")[:1], ("1000000.5", "1000001", "999999.9")),
        Case("1234567.89", ("1,234,567.89", "1234567.890"), ("1234567.88", "1234568.9", "1234567")),
        Case(r"\frac{1}{3}", ("0.333333", "0.33333333", "1/3"), ("0.33", "0.3333", "0.333433")),
        Case(r"\frac{2}{3}", ("0.666667", "0.66666667", "0.6666666"), ("0.67", "0.666657")),
        Case("3.14", ("3.140",), ("3.15", "3.1", "3.1416", r"\pi")),
        Case("0.1", ("1/10", ".1", "0.10", r"\frac{1}{10}"), ("0.01", "0.11", "1")),
        Case("12345678x", ("12345678.0x",), ("12345679.0x", "12345678.1x")),
        Case("2.5x", (r"\frac{5}{2}x", r"\frac{5x}{2}"), ("2.4x", "25x")),
    ],
    "percent signs": [
        Case("0.5", (r"50\%", "50%", "50 percent"), (r"0.5\%", "0.5%", r"5\%", "50")),
        Case("9", (r"900\%",), (r"9\%", "9 percent", r"0.09\%", "9%")),
        Case(r"9\%", (r"9\%", "9", "0.09", "9 percent", r"\frac{9}{100}"), ("900", r"0.09\%", r"900\%", "0.9")),
        Case(r"12.5\%", ("12.5%", "0.125", r"\frac18"), ("1250", r"0.125\%", "1.25")),
        Case("1", (r"100\%",), (r"1\%",)),
        Case(r"\frac{1}{4}", (r"25\%",), (r"\frac{1}{4}\%", "25")),
    ],
    "thousands before a unit": [
        Case("1200", (r"1,200 \text{ square feet}", "1,200 feet", r"\$1,200", "1,200 dollars", r"1{,}200\text{ m}^2"), ("1,2 feet", "200 feet", "1200 million")),
        Case("#### 1,200", ("1200", "1,200", r"\$1,200.00", r"1,200\text{ miles}"), ("1, 200", "12,00", "120")),
        Case("12345", (r"12,345 \text{ people}", "12,345 dollars per year"), ("12,346 people", "12, 345 people")),
        Case(r"32{,}348", (r"\$32,348", "32348 dollars"), ("32,349",)),
    ],
    "digits joined by an operator": [
        Case("2^{n+1}", (r"2 \cdot 2^n", r"2 \times 2^{n}", "2*2^n", r"4\cdot2^{n-1}"), (r"2 \cdot 2^{n+1}", "2^n+1", "22^n", "4^n")),
        Case(r"3\cdot4^n", (r"3 \times 4^{n}", r"12\cdot4^{n-1}"), ("34^n", "12^n", r"3\cdot 4^{n+1}", r"4\cdot3^n")),
        Case(r"\log_2 3", (r"\log_{2}{3}", r"\log_2(3)", r"\frac{\ln 3}{\ln 2}", r"\frac{\log 3}{\log 2}"), (r"\log_3 2", r"\log_{2}{4}", r"\log 3", r"\log_{23}")),
        Case(r"5 \cdot 10^x", (r"5\times10^{x}",), ("510^x", "50^x")),
        Case(r"2^5\cdot3^2x", ("288x",), ("2^53^2x", "32x")),
        Case(r"\log_{10} x", (r"\log_{10}(x)", r"\log x"), (r"\ln x", r"\log_2 x")),
    ],
    "named answers": [
        Case("3", (r"\theta = 3", "x = 3", r"x_1 = 3", r"a_{10} = 3", r"|AB| = 3", "AB = 3", r"\overline{AB} = 3", "m+n=3", r"f^{-1}(2)=3"), (r"\theta = 4", "-x = 3", "2x = 3", "x \\neq 3", "x > 3", r"\text{not } x = 3", "x^2 = 4", r"\sqrt{x} = 3")),
        Case("5", ("f(2) = 5", "f(2)=5", r"\text{Value} = 5", r"n = 5"), ("f(2) = 6", "f(5) = 2", "f(5)")),
        Case(r"\frac{1}{2}", (r"P(A) = \frac12", "P(A)=0.5", r"P(A \cap B) = 1/2", r"\sin\theta = \frac12", r"P(X \geq 2) = \frac12"), (r"P(A) = \frac13", "P(1/2) = 3")),
        Case("60", (r"\angle ABC = 60^\circ", r"m\angle ABC = 60^{\circ}", r"\angle A = 60"), (r"\angle ABC = 61^\circ", r"\angle ABC = 30^\circ")),
        Case(r"60^\circ", (r"\angle ABC = 60^\circ", "60"), (r"\angle ABC = 120^\circ",)),
        Case("12", (r"\text{Area} = 12", r"\text{Area} = 12 \text{ cm}^2", r"A = 12", r"S_{\triangle ABC} = 12", r"[ABC] = 12"), (r"\text{Area} = 13",)),
        Case("(3,2)", ("(x,y) = (3,2)", "(x, y) = (3, 2)"), ("(x,y) = (2,3)", "(3,2) = (2,3)")),
        Case("x^2+2x", ("f(x) = x^2+2x", "y = x(x+2)"), ("f(x) = x^2", "f(x)")),
        Case("x+y=5", ("y+x=5", "y=5-x", "2x+2y=10"), ("5", "x+y=6", "x=5")),
        Case("x^2+y^2=25", ("y^2=25-x^2",), ("25", "x^2-y^2=25")),
        Case("y=2x+3", ("2x-y+3=0", "y = 3+2x"), ("y=2x-3", "x=2y+3")),
        Case(r"\theta = 3", ("3", r"\theta=3"), (r"\phi = 3", r"\theta = 2")),
    ],
    "chains and approximations": [
        Case("2.5", (r"\frac{10}{4} = 2.5", r"x = \frac{10}{4} = 2.5", r"\frac{10}{4} = \frac{5}{2}"), (r"\frac{10}{4} = 2.4", r"\frac{9}{4} = 2.5", r"2.5 = 3")),
        Case("7.78", (r"\approx 7.78", r"x \approx 7.78", r"≈ 7.78", r"\frac{70}{9} \approx 7.78", r"\frac{70}{9} = 7.78"), (r"\approx 7.79", r"\frac{71}{9} \approx 7.78")),
        Case(r"3\sqrt{2}", (r"3\sqrt{2} \approx 4.24", r"\sqrt{18} = 3\sqrt{2}", r"\sqrt{18} = 3\sqrt2 \approx 4.243"), (r"3\sqrt{2} \approx 4.34", r"3\sqrt{3} \approx 4.24", r"\approx 4.24")),
        Case("18", ("9+9=18", r"3 \times 6 = 18"), ("9+9", "9+8=18", "18=19", "9+9=9+9")),
        Case(r"\frac{5}{2}", (r"\frac{10}{4} = \frac{5}{2} = 2.5",), (r"\frac{10}{4} = \frac{5}{2} = 3.5",)),
        Case(r"\pi", (r"\pi \approx 3.14",), ("3.14", r"\approx 3.14", r"\pi \approx 3.24")),
    ],
    "degrees, functions and other notation": [
        Case(r"\frac{1}{2}x", (r"x\cos 60^\circ", r"x \sin(30^{\circ})"), (r"x\cos 30^\circ", r"x\sin(60^\circ)")),
        Case(r"2\sin 20^\circ", (r"2 \sin(20^\circ)", r"2\cos 70^\circ"), (r"2\sin 20", r"2\cos 20^\circ")),
        Case("e^{2x}", (r"\exp(2x)", "exp(2x)", r"(e^x)^2"), (r"\exp(x)", "2e^x", "e^2x")),
        Case(r"\sinh x", (r"\frac{e^x-e^{-x}}{2}", "sinh(x)"), (r"\sin x", r"\cosh x")),
        Case("10^{-2}x", ("10^-2 x", "0.01x", r"\frac{x}{100}"), ("10^2 x", "10-2x")),
        Case("0.01", (r"\frac{1}{100}", r"1 \times 10^{-2}", r"1\times10^-2"), ("0.1", "100")),
        Case("\\ln 2", ("ln(2)", r"\ln(2)", "ln 2", r"\ln{2}"), (r"\log 2", "ln(3)", "ln(2)+1")),
        Case("6-5i", (r"6-5\cdot i", "6 - 5*i", r"6 - 5\mathrm{i}", "-5i+6"), (r"6+5\cdot i", "5-6i", "6-5", "1i")),
        Case("R^2", (), ("r^2",)),
        Case("2.5x", (r"2\frac{1}{2}x",), (r"x",)),
        Case(r"n!", ("n(n-1)!", "n \\cdot (n-1)!"), ("n", "(n-1)!")),
    ],
    "matrices": [
        Case(r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\left(\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right)", r"\left[\begin{array}{rr}1&2\\3&4\end{array}\right]", r"\left( \begin{matrix} 1&2\\3&4 \end{matrix} \right)", r"A = \begin{pmatrix}1&2\\3&4\end{pmatrix}"), (r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", "1, 2, 3, 4")),
        Case(r"\begin{pmatrix} -2 \\ -14 \end{pmatrix}", (r"\begin{array}{c} -2 \\ -14 \end{array}", r"\left(\begin{array}{c} -2 \\ -14\end{array}\right)"), (r"\begin{pmatrix} -14 \\ -2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 14 \end{pmatrix}")),
    ],
    "letters of choices": [
        Case("B", (r"\textbf{(B)} 25", "(B)", "b", "(b)", "B.", "B)", "(B) 25", "B. 25", "B: 25", r"\textbf{(B) } 25", r"\text{B}", r"\mathrm{(B)}\ 25"), ("A", "(A) 25", "A or B", "(A) 25 or (B) 30", "AB", "B, C", "25", "(B) is wrong", "not B")),
        Case(r"\text{(C)}", ("C", "(C)", "c", r"\textbf{(C)}\ 7"), ("B", "D", "CD")),
        Case("A, B, D", ("ABD", "A,B,D", "D, B, A", "A, B and D", "(A), (B), (D)"), ("AB", "ABC", "ABCD", "A, B", "A")),
        Case("ABD", ("A, B, D", "ABD", "BDA"), ("AD", "A, B", "ABDE")),
        Case(r"\textbf{(B)} 25", ("B", "25", "(B) 25", "(B)"), ("(B) 26", "(C) 25", "26", "C")),
        Case("25", (r"\textbf{(B)} 25", "(B) 25"), ("(B) 26", "B", "(A) 25 or (B) 26")),
    ],
    "other languages": [
        Case("5", (r"5\text{元}", "5元", "5 个", "5 岁", "5 厘米"), ("5万", "5百", "5千", "5亿", "半5")),
        Case("-2, 3", ("-2 或 3", "-2或3", "3、-2", "-2，3", "-2 和 3"), ("2 或 3", "-2", "-2 或 4")),
        Case("5 元", ("5", r"5\text{元}"), ("5 米",)),
    ],
    "the real numbers": [
        Case(r"(-\infty, \infty)", (r"\mathbb{R}", r"x \in \mathbb{R}", "ℝ", r"(-\infty,+\infty)", r"\text{all real numbers}", "(−∞, ∞)"), (r"\mathbb{Z}", r"(0, \infty)", r"[-\infty, 0)", r"\mathbb{R}^2", r"\emptyset")),
        Case(r"\mathbb{R}", ("(-∞, ∞)", r"x \in (-\infty, \infty)"), (r"(-\infty, 0)", r"\mathbb{Q}")),
        Case("x > 3", (r"(3, \infty)", "3 < x", r"x \in (3,\infty)"), (r"[3,\infty)", "x < 3", r"x \geq 3", "3")),
        Case(r"(-\infty,-2] \cup [3,\infty)", (r"x \leq -2 \text{ or } x \geq 3", r"x \le -2, x \ge 3"), (r"x < -2 \text{ or } x \geq 3", r"x \leq -2")),
    ],
    "tuples, intervals and sets": [
        Case("(1,2)", ("( 1 , 2 )", r"\left(1, 2\right)", "(1.0, 2)"), ("(2,1)", "[1,2]", "(1,2]", "(1)", "(1,2,3)", "1", "(-1,2)", r"\{1,2\}")),
        Case("[0,5)", (r"0 \leq x < 5", "[0, 5)"), ("(0,5)", "[0,5]", "[5,0)", "0 < x < 5")),
        Case(r"\{1,2,3\}", ("1, 2, 3", r"\{3, 2, 1\}", r"\left\{1,2,3\right\}"), (r"\{1,2\}", r"\{1,2,4\}", r"\{1,2,3,3\}")),
        Case("(3, 4, 5)", ("(3,4,5)",), ("(3,4)", "(5,4,3)", "(3,4,6)")),
    ],
    "ways of stating it": [
        Case("34", ("So we are done.\n\nAnswer: 34", "Answer: $34$", "**Answer:** 34", "**Answer: 34**", "<answer>34</answer>", "<answer> $34$ </answer>", "<answer>\\boxed{34}</answer>", "The correct answer is 34.", "Therefore, the answer is $34$.", "the final answer is: 34", r"\boxed 34", r"\boxed{34} so \boxed{}", r"\boxed{34} \boxed{ }", "Final Answer: 34", "ANSWER: 34", r"The answer is \[ 34 \]", "The answer is: $$34$$", "#### 34", "The answer to the problem is 34.", "Answer:\n34", r"\fbox{34}", r"Answer: \boxed{34}", "<think>maybe \\boxed{3}</think> <answer>34</answer>", "The answer is **34**.", "Hence the answer is $x = 34$.", r"$\boxed{34}$", "The answer is 34, because 17 + 17 = 34."), ("Answer: 35", "<answer>35</answer>", "The answer is not 34.", r"not \boxed{34}", "The correct answer is 35, not 34.", "Answer: 34 or 35", "I do not think the answer is 34", "<answer></answer>", "Answer:", r"\boxed{34} no, \boxed{35}", "34 is a number", r"\boxed{34}, \boxed{35}", "The answer is 34.\nThe answer is 35.", "The answer isn't 34.")),
        Case(r"\frac{3}{4}", (r"Answer: $\frac{3}{4}$", r"The correct answer is $\dfrac34$.", "Answer: 0.75", r"<answer>\frac{3}{4}</answer>"), (r"Answer: $\frac{4}{3}$",)),
        Case("B", ("The correct answer is (B) 25.", "Answer: B", "<answer>B</answer>", "The answer is B."), ("The correct answer is (C) 25.", "Answer: A or B")),
    ],
}  # fmt: skip

_STATES = ("box", "nswer", "NSWER", "####", "is a number")


def completion(text: str) -> str:
    """The text as a completion that states an answer."""
    return text if any(mark in text for mark in _STATES) else rf"so \boxed{{{text}}}."


def pairs() -> list[tuple[str, str, str, bool]]:
    """Kind, gold answer, completion, right verdict."""
    return [
        (kind, case.gold, completion(text), right)
        for kind, cases in KINDS.items()
        for case in cases
        for right, texts in ((True, case.right), (False, case.wrong))
        for text in texts
    ]
