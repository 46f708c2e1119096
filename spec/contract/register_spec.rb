# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor#register" do
  let(:one) { monitor }
  let(:seven_days) { 604_800 }

  it "returns nil" do
    expect(one.register(task)).to be_nil
  end

  it "scores the registry id with the server's time in ms" do
    before = server_ms
    one.register(task("task-1"))
    expect(score(one.full_task_id("task-1"))).to be_between(before - Registry::CLOCK_ERROR, server_ms + Registry::CLOCK_ERROR)
  end

  it "scores in whole ms" do
    one.register(task("task-1"))
    expect(score(one.full_task_id("task-1")) % 1).to eq(0)
  end

  it "stores the job as JSON.generate writes it", :gc_stress do
    request = task("task-1", retry: 5, created_at: 1_700_000_000.123)
    one.register(request)
    expect(payload(one.full_task_id("task-1"))).to eq(JSON.generate(request.task_handler.sidekiq_job))
  end

  it "adds nothing else" do
    one.register(task)
    expect(keys).to contain_exactly(Registry::INDEX, Registry::JOBS)
  end

  it "does it in one atomic step" do
    one.register(task)
    expect(one_step?(redis_commands { one.register(task) }, "ZADD", "HSET", "EXPIRE")).to be(true)
  end

  it "replaces job and heartbeat of a task that it registers again" do
    one.register(task("task-1", args: [1]))
    age(one.full_task_id("task-1"))
    one.register(task("task-1", args: [2]))
    expect(JSON.parse(payload(one.full_task_id("task-1")))).to include("args" => [2])
    expect(score(one.full_task_id("task-1"))).to be_within(5_000).of(server_ms)
  end

  describe "the TTL of both keys" do
    def ttls_after_registering(**settings)
      monitor(**settings).register(task)
      [ttl(Registry::INDEX), ttl(Registry::JOBS)]
    end

    {
      "an Integer" => 300, "a Float" => 300.0, "a Rational" => Rational(300), "what has to_f" => Registry::Duration.new(300.0)
    }.each do |kind, threshold|
      it "is 7 days for an orphan_threshold of 300 s given as #{kind}" do
        expect(ttls_after_registering(orphan_threshold: threshold)).to eq([seven_days, seven_days])
      end
    end

    {300_000 => 900_000, 300_000.1 => 900_001, Rational(900_001, 3) => 900_001, 201_600.1 => 604_801}.each do |threshold, expected|
      it "is 3 x orphan_threshold, rounded up, for #{threshold.inspect} s" do
        expect(ttls_after_registering(orphan_threshold: threshold)).to eq([expected, expected])
      end
    end

    it "is renewed" do
      one.register(task)
      [Registry::INDEX, Registry::JOBS].each { |key| REDIS.call("EXPIRE", key, 100) }
      one.register(task)
      expect([ttl(Registry::INDEX), ttl(Registry::JOBS)]).to eq([seven_days, seven_days])
    end
  end

  describe "with ids and jobs of any kind" do
    [
      %(quotes " and ' and `), "line\nend\r\n", "\u{1F680} \u00e9 \u65e5\u672c", "null\0byte", "percent %s {} \\", "a/b/c", "",
      "x" * 100_000
    ].each do |id|
      it "keeps the id #{id[0, 20].inspect}" do
        one.register(task(id))
        expect(REDIS.call("ZRANGE", Registry::INDEX, 0, -1)).to eq(["#{process_id(one)}/#{id}"])
        expect(REDIS.call("HKEYS", Registry::JOBS)).to eq(["#{process_id(one)}/#{id}"])
        expect(one.registered_task_ids).to eq(["#{process_id(one)}/#{id}"])
      end
    end

    it "keeps an id of bytes that are not UTF-8" do
      id = "\xFF\x00\xFE".b
      one.register(request = task(id))
      expect(one.registered?(request)).to be(true)
      expect(one.registered_task_ids.map(&:b)).to eq(["#{process_id(one)}/".b + id])
    end

    it "writes the id of a Symbol or an Integer as string interpolation does" do
      one.register(task(:symbol))
      one.register(task(42))
      expect(one.registered_task_ids).to contain_exactly("#{process_id(one)}/symbol", "#{process_id(one)}/42")
      expect(one.registered?(task("42"))).to be(true)
    end

    it "keeps a job of 1 MB" do
      request = task("big", args: ["\u00e9\"\n" * 250_000])
      one.register(request)
      expect(payload(one.full_task_id("big"))).to eq(JSON.generate(request.task_handler.sidekiq_job))
    end

    it "writes whatever JSON.generate writes, byte for byte" do
      random = Random.new(RSpec.configuration.seed)
      200.times do |number|
        job = {"class" => "ReportJob", "args" => Array.new(random.rand(0..4)) { any_json_value(random, 3) }}
        one.register(Tasks::Task.new("random", Tasks::TaskHandler.new(job)))
        expect(payload(one.full_task_id("random"))).to eq(JSON.generate(job)), "job #{number}: #{job.inspect}"
      end
    end

    def any_json_value(random, depth)
      kinds = depth.zero? ? 8 : 10
      case random.rand(kinds)
      when 0 then nil
      when 1 then random.rand < 0.5
      when 2 then random.rand(-(2**70)..2**70)
      when 3 then [0.0, -0.0, 1.0e22, 1e-7, 1e16, 123_456.789, Float::MIN, Float::MAX, random.rand].sample(random: random)
      when 4 then Array.new(random.rand(20)) { random.rand(0x20..0x7e).chr }.join
      when 5 then ["\u2028\u2029", "</script>", "\u0000\u001f\u007f", "\u{1F468}\u{200D}", "\\/\"\b\f\n\r\t"].sample(random: random)
      when 6 then [:a_symbol, Time.at(0, in: "UTC"), Rational(1, 3), 1..3, Object].sample(random: random)
      when 7 then Struct.new(:name) { def to_json(*) = "{\"own\":true}" }.new("x")
      when 8 then Array.new(random.rand(4)) { any_json_value(random, depth - 1) }
      else
        Array.new(random.rand(4)) do |index|
          [["key#{index}", :"symbol#{index}", index, nil].sample(random: random), any_json_value(random, depth - 1)]
        end.to_h
      end
    end
  end

  describe "with what it cannot register" do
    it "raises NoMethodError for a task without id, and writes nothing" do
      without_id = Struct.new(:task_handler).new(Tasks::TaskHandler.new({"class" => "ReportJob", "args" => []}))
      expect { one.register(without_id) }.to raise_error(NoMethodError, /id/)
      expect(keys).to be_empty
    end

    it "raises NoMethodError for a task without task_handler, and writes nothing" do
      expect { one.register(Struct.new(:id).new("task-1")) }.to raise_error(NoMethodError, /task_handler/)
      expect(keys).to be_empty
    end

    it "raises NoMethodError for a task handler without sidekiq_job, and writes nothing" do
      expect { one.register(Tasks::Task.new("task-1", Object.new)) }.to raise_error(NoMethodError, /sidekiq_job/)
      expect(keys).to be_empty
    end

    it "raises NoMethodError for nil, and writes nothing" do
      expect { one.register(nil) }.to raise_error(NoMethodError)
      expect(keys).to be_empty
    end

    {"NaN" => Float::NAN, "infinity" => Float::INFINITY, "text that is not UTF-8" => "\xFF"}.each do |kind, value|
      it "raises JSON::GeneratorError for a job with #{kind}, and writes nothing" do
        expect { one.register(task("task-1", args: [value])) }.to raise_error(JSON::GeneratorError)
        expect(keys).to be_empty
      end
    end

    it "raises what a to_json of the job's own raises, and writes nothing", gc_stress: 1 do
      stubborn = Class.new { def to_json(*) = raise(IOError, "not me") }.new
      expect { one.register(task("task-1", args: [stubborn])) }.to raise_error(IOError, "not me")
      expect(keys).to be_empty
    end

    [Float::NAN, Float::INFINITY, -Float::INFINITY, Registry::Duration.new(Float::NAN)].each do |threshold|
      it "raises ArgumentError for an orphan_threshold of #{threshold.inspect}, and writes nothing" do
        expect { monitor(orphan_threshold: threshold).register(task) }.to raise_error(ArgumentError)
        expect(keys).to be_empty
      end
    end

    it "goes on working afterwards" do
      expect { one.register(task("task-1", args: [Float::NAN])) }.to raise_error(JSON::GeneratorError)
      expect { one.register(nil) }.to raise_error(NoMethodError)
      one.register(request = task("task-1"))
      expect(one.registered?(request)).to be(true)
    end
  end
end
