# frozen_string_literal: true

require "mkmf"

begin
  require "rb_sys/mkmf"
rescue LoadError
  abort "patient_http_monitor: the gem rb_sys is missing, which builds its Rust code. Install it: gem install rb_sys"
end

unless find_executable("cargo")
  abort "patient_http_monitor: cargo is missing. The gem is built from Rust source and needs Rust >= 1.88 (https://rustup.rs)."
end

folders = %w[/usr/lib /usr/lib64 /usr/local/lib /usr/lib/llvm*/lib /usr/lib64/llvm*/lib /usr/lib/*-linux-*]
libclang = "{#{folders.join(",")}}/libclang{,-[0-9]*}.so*"
unless ENV["LIBCLANG_PATH"] || find_executable("llvm-config") || RUBY_PLATFORM.include?("darwin") || Dir.glob(libclang).any?
  # It may still be somewhere that bindgen looks and this file does not.
  warn "patient_http_monitor: libclang seems to be missing, with which rb-sys reads Ruby's headers. If the build fails, install it " \
    "(Debian: apt-get install libclang-dev; Fedora: dnf install clang-devel; Alpine: apk add clang-dev) or set LIBCLANG_PATH."
end

create_rust_makefile("patient_http_monitor/patient_http_monitor") do |builder|
  builder.extra_cargo_args += ["--locked"]
end
