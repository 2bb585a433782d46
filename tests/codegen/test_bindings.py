"""Generated classes in other languages: their names, and that they compile and run where a compiler is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from c_programs import library, run, tool
from small_models import chain

from tcomp.codegen.artifact import Report
from tcomp.codegen.bindings import check_bindings, write_bindings
from tcomp.codegen.bindings.names import Names
from tcomp.codegen.toolchain import native_toolchain
from tcomp.errors import UsageError
from tcomp.relay.builder import GraphBuilder

JAVA = """
package com.a_b;
import java.nio.*;

class Chain {
  native long nativeCreate(int threads, String weights, long sharing);
  native void nativeRun(long context, ByteBuffer[] inputs, ByteBuffer[] outputs);
  native void nativeCancel(long context);
  native void nativeDestroy(long context);
}

class Main {
  static ByteBuffer[] buffers(int count, int bytes) {
    ByteBuffer[] all = new ByteBuffer[count];
    for (int i = 0; i < count; i++) all[i] = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
    return all;
  }

  static String refusal(Runnable call) {
    try {
      call.run();
      return "none";
    } catch (RuntimeException error) {
      return error.getClass().getSimpleName() + ": " + error.getMessage();
    }
  }

  public static void main(String[] none) {
    System.loadLibrary("chain_jni");
    Chain chain = new Chain();
    long context = chain.nativeCreate(1, "weights of a library that needs none", 0);
    ByteBuffer[] inputs = buffers(1, 512), outputs = buffers(4, 512);
    for (int i = 0; i < 128; i++) inputs[0].putFloat(4 * i, 2);
    for (int run = 0; run < 1000; run++) chain.nativeRun(context, inputs, outputs);
    System.out.println(outputs[1].getFloat(0) + " " + outputs[3].getFloat(20));
    System.out.println(refusal(() -> chain.nativeRun(context, buffers(1, 511), outputs)));
    System.out.println(refusal(() -> chain.nativeRun(0, inputs, outputs)));
    System.out.println(refusal(() -> chain.nativeCreate(-1, null, 0)));
    System.out.println(refusal(() -> chain.nativeCreate(1, "other", context)));
    chain.nativeCancel(context);
    long second = chain.nativeCreate(1, null, context);
    chain.nativeDestroy(context);
    for (ByteBuffer output : outputs) output.putFloat(0, 0);
    chain.nativeRun(second, inputs, outputs);
    System.out.println(outputs[1].getFloat(0));
    chain.nativeDestroy(second);
  }
}
"""

KOTLIN = """
package com.a_b

fun refusal(call: () -> Unit): String =
    try { call(); "none" }
    catch (error: RuntimeException) { "${error.javaClass.simpleName}: ${error.message}" }

fun main() {
    val image = FloatArray(128) { 2f }
    val view = FloatArray(128)
    val chain = Chain(threads = 1)
    val second = Chain(threads = 1, sharing = chain)
    chain.use { model ->
        model.x.put(image)
        repeat(1000) { model.run() }
        model.output1.get(view)
        println("${view[0]} ${model.x_.get(5)} ${Chain.OUTPUT0_SHAPE.toList()}")
        model.cancel()
    }
    second.x.put(image)
    second.run()
    println(second.output1.get(0))
    println(refusal { Chain(sharing = chain) })
    println(refusal { chain.run() })
    println(refusal { Chain(threads = -1) })
}
"""

SWIFT = """
let model = try Chain(threads: 1, sharing: Chain(threads: 1))
for i in model.x.indices { model.x[i] = 2 }
try model.run()
print(model.output1[0], model.x_[5], Chain.output0Shape)
do { _ = try Chain(threads: -1) } catch { print(error) }
"""


@pytest.fixture
def built(tmp_path: Path) -> Report:
    report = library(chain(), tmp_path)
    write_bindings(report.program, report.header, ["jni:com.a_b", "swift"])
    return report


def compile_jni(folder: Path) -> None:
    """libchain_jni.so, of the generated C and the model's library."""
    java = Path(tool("javac", "openjdk-17-jdk-headless")).resolve().parent.parent / "include"
    if not (java / "jni.h").exists():
        pytest.skip(f"no jni.h in {java}")
    flags = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{java}", f"-I{java / 'linux'}"]
    sources = ["chain_jni.c", folder / "chain.so", "-o", "libchain_jni.so"]
    subprocess.run([*native_toolchain().command, *flags, *sources], cwd=folder, check=True)


@pytest.mark.slow
def test_java_calls_the_native_methods(built: Report) -> None:
    """As the Kotlin class does, whose native methods these are; for machines with a JDK alone."""
    folder = built.library.parent
    compile_jni(folder)
    (folder / "Main.java").write_text(JAVA)
    run([tool("javac", "openjdk-17-jdk-headless"), "-d", folder, folder / "Main.java"])
    java = [
        tool("java", "openjdk-17-jre-headless"),
        "-Xcheck:jni",
        f"-Djava.library.path={folder}",
        "-cp",
        folder,
    ]
    assert run([*java, "com.a_b.Main"]).splitlines() == [
        "1.0 2.0",
        "IllegalArgumentException: input 0 (x) has 511 bytes; it must have 512",
        "IllegalArgumentException: tcomp_run: context is NULL",
        "IllegalArgumentException: tcomp_options.threads is -1; it must not be negative",
        "IllegalArgumentException: tcomp_options has share_with, whose weights the context gets, and others; "
        "leave one out",
        "1.0",
    ]


@pytest.mark.slow
def test_kotlin_calls_the_model(built: Report) -> None:
    folder = built.library.parent
    kotlinc = tool("kotlinc", "kotlin")
    compile_jni(folder)
    (folder / "Main.kt").write_text(KOTLIN)
    sources = [folder / "Chain.kt", folder / "Main.kt"]
    subprocess.run(
        [kotlinc, "-no-reflect", "-include-runtime", "-d", folder / "app.jar", *sources], check=True
    )
    java = [tool("java", "openjdk-17-jre-headless"), f"-Djava.library.path={folder}"]
    assert run([*java, "-jar", folder / "app.jar"]).splitlines() == [
        "1.0 2.0 [8, 16]",
        "1.0",
        "IllegalArgumentException: the object to share weights with is closed",
        "IllegalArgumentException: tcomp_run: context is NULL",
        "IllegalArgumentException: tcomp_options.threads is -1; it must not be negative",
    ]


def test_clang_reads_the_module_maps(built: Report) -> None:
    clang = shutil.which("clang") or tool("clang-14", "clang-14")
    folder = built.library.parent
    source = folder / "module.m"
    source.write_text(
        "@import CChain;\n"
        "const tcomp_api *api(void) { return tcomp_api_chain(); }\n"
        '_Static_assert(CHAIN_INPUT0_BYTES == 512, "the model\'s header");\n'
    )
    flags = ["-fmodules", f"-fmodules-cache-path={folder / 'cache'}", "-fmodule-map-file=chain.modulemap"]
    done = subprocess.run(
        [clang, *flags, "-Werror", "-fsyntax-only", source], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_swift_calls_the_model(built: Report) -> None:
    folder = built.library.parent
    swiftc = tool("swiftc", "swiftlang, where the distribution has it")
    (folder / "main.swift").write_text(SWIFT)
    command = [swiftc, "-Xcc", "-fmodule-map-file=chain.modulemap", "Chain.swift", "main.swift", "./chain.so"]
    subprocess.run([*command, "-o", "main"], cwd=folder, check=True)
    assert subprocess.check_output(["./main"], cwd=folder, text=True).splitlines() == [
        "1.0 2.0 [8, 16]",
        "tcomp_options.threads is -1; it must not be negative",
    ]


def test_names_are_unique_and_no_keywords(built: Report) -> None:
    b = GraphBuilder("2 nets-v1")
    named = ["in", "run", "sharing", "Image.1", "image:1", "__", "X", "x"]
    inputs = [b.input(name, (2,)) for name in named]
    report = library(b.build(*(b.op("relu", value) for value in inputs)), built.library.parent)
    names = Names(report.program)
    assert (names.type, names.model) == ("Model2NetsV1", "_2_nets_v1")
    assert [t.name for t in names.inputs] == [
        "in_",
        "run_",
        "sharing_",
        "image_1",
        "image_1_",
        "input",
        "x",
        "x_",
    ]
    constants = [t.constant for t in (*names.inputs, *names.outputs)]
    assert len(set(constants)) == len(constants)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("java", "unknown bindings `java`; there are jni, jni:PACKAGE and swift"),
        ("swift:com.a", "unknown bindings `swift:com.a`"),
        ("jni:", "`` is no package"),
        ("jni:com..a", "`com..a` is no package; give one as com.example.app"),
    ],
)
def test_unknown_bindings_are_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem.replace(".", r"\.")):
        check_bindings([text])
