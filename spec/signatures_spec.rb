# frozen_string_literal: true

require "spec_helper"
require "rbs"
require "support/ruby_process"

# A ratchet: a public method, constant or class of the gem without a signature fails, and so does a signature of what is not
# there.
RSpec.describe "the signatures in sig/" do
  # What Ruby defines by itself, or what no caller calls.
  let(:implied) { %i[initialize initialize_copy] }

  let(:declared) do
    Dir[File.join(RubyProcess::ROOT, "sig/**/*.rbs")].each_with_object({}) do |path, found|
      _, _, declarations = RBS::Parser.parse_signature(RBS::Buffer.new(name: path, content: File.read(path)))
      declarations.each { |declaration| collect(declaration, "", found) }
    end
  end

  Surface = Struct.new(:instance_methods, :singleton_methods, :constants)

  def collect(declaration, namespace, found)
    name = [namespace, declaration.name.to_s].reject(&:empty?).join("::")
    surface = found[name] ||= Surface.new({}, {}, [])
    declaration.members.each do |member|
      case member
      when RBS::AST::Members::MethodDefinition
        methods = (member.kind == :singleton) ? surface.singleton_methods : surface.instance_methods
        methods[member.name] = member.overloads.map { |overload| overload.method_type.type }
      when RBS::AST::Members::AttrReader then surface.instance_methods[member.name] = []
      when RBS::AST::Declarations::Constant then surface.constants << member.name.to_s.to_sym
      when RBS::AST::Declarations::Class, RBS::AST::Declarations::Module
        collect(member, name, found)
        surface.constants << member.name.to_s.to_sym
      end
    end
  end

  # The gem's public classes and modules: those one can name.
  def public_modules(root = PatientHttpMonitor)
    nested = root.constants(false).map { |name| root.const_get(name) }.grep(Module)
    [root, *nested.select { |one| one.name.start_with?("#{root.name}::") }.flat_map { |one| public_modules(one) }]
  end

  let(:surface) { public_modules + [PatientHttp::Sidekiq::TaskMonitor] }

  it "name every public class, method and constant" do
    missing = surface.flat_map do |one|
      known = declared[one.name]
      next [one.name] unless known

      (one.public_instance_methods(false) - known.instance_methods.keys).map { |name| "#{one.name}##{name}" } +
        (one.singleton_methods(false) - known.singleton_methods.keys).map { |name| "#{one.name}.#{name}" } +
        (one.constants(false) - known.constants).map { |name| "#{one.name}::#{name}" }
    end
    expect(missing).to be_empty
  end

  it "name nothing that is not there" do
    expect(declared.keys - %w[PatientHttp PatientHttp::Sidekiq] - surface.map(&:name)).to be_empty
    superfluous = surface.select { |one| declared.key?(one.name) }.flat_map do |one|
      known = declared.fetch(one.name)
      (known.instance_methods.keys - implied - one.public_instance_methods(false)).map { |name| "#{one.name}##{name}" } +
        (known.singleton_methods.keys - one.singleton_methods(false)).map { |name| "#{one.name}.#{name}" } +
        (known.constants - one.constants(false)).map { |name| "#{one.name}::#{name}" }
    end
    expect(superfluous).to be_empty
  end

  # As Ruby counts.
  def arity(type)
    required = type.required_positionals.size
    (type.optional_positionals.any? || type.optional_keywords.any?) ? -(required + 1) : required
  end

  it "take as many arguments as the methods do" do
    differing = surface.select { |one| declared.key?(one.name) }.flat_map do |one|
      known = declared.fetch(one.name)
      known.instance_methods.map { |name, types| [one.instance_method(name), types, "#{one.name}##{name}"] } +
        known.singleton_methods.map { |name, types| [one.method(name), types, "#{one.name}.#{name}"] }
    end
    differing.reject! { |method, types, _| types.empty? || types.any? { |type| arity(type) == method.arity } }
    expect(differing.map(&:last)).to be_empty
  end
end
