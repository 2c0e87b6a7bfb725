#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "program.h"

namespace nb = nanobind;

namespace {

using Heads = nb::ndarray<const float, nb::ndim<3>, nb::device::cpu>;
using OutHeads = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using OutScores = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
// Of any floats, by their bits: [tokens, heads, dim].
using Input = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutFloats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using State = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Kept = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct Side {
  int32_t codec, scale, dim, rotate;
  std::optional<Vector> signs;
  std::optional<Table> center, equalize;

  // Arrays are read with the sizes that the front door is given.
  kvant_kv_side c(int32_t heads) const {
    if (signs && int64_t(signs->shape(0)) != rotate) throw nb::value_error("signs do not fit");
    for (const auto* table : {&center, &equalize}) {
      if (*table && (int64_t((*table)->shape(0)) != heads || int64_t((*table)->shape(1)) != dim)) {
        throw nb::value_error("a transform does not fit");
      }
    }
    return {codec, scale, dim, rotate, signs ? signs->data() : nullptr, center ? center->data() : nullptr,
            equalize ? equalize->data() : nullptr};
  }
};

struct Layer {
  int32_t heads;
  Side k, v;
  int64_t window, sink, tail, chunk;
  bool fine, view;
};

struct Turn {
  int64_t by;
  double theta, scale;
  std::optional<Vector> factors;
  int32_t rotary;
  bool interleaved;
};

struct Selection {
  int32_t layer, head;
  int64_t held;
  Kept kept;
  std::optional<Turn> turn;
  int64_t turn_begin, turn_end;
  mutable kvant_turn turned;

  kvant_selection c() const {
    if (turn) {
      if (turn->factors && int64_t(turn->factors->shape(0)) != turn->rotary / 2) throw nb::value_error("factors do not fit");
      turned = {turn->by, turn->theta, turn->scale, turn->factors ? turn->factors->data() : nullptr, turn->rotary,
                turn->interleaved};
    }
    return {layer, head, held, kept.data(), int64_t(kept.shape(0)), turn ? &turned : nullptr, turn_begin, turn_end};
  }
};

struct Cache {
  std::shared_ptr<kvant_cache> handle;
  std::vector<Layer> layers;
};

const Layer& layer_of(const std::vector<Layer>& layers, int32_t i) {
  if (i < 0 || size_t(i) >= layers.size()) throw nb::index_error("no such layer");
  return layers[size_t(i)];
}

struct Sequence {
  std::shared_ptr<kvant_sequence> handle;
  std::vector<Layer> layers;

  const Layer& layer(int32_t i) const { return layer_of(layers, i); }
};

Sequence sequence_of(kvant_sequence* handle, const std::vector<Layer>& layers) {
  return {std::shared_ptr<kvant_sequence>(handle, kvant_sequence_free), layers};
}

// What the Python side has checked; memory depends on it.
template <class Array>
void fits(const Array& x, size_t tokens, size_t heads, int32_t dim) {
  const bool same = x.shape(0) == tokens && x.shape(1) == heads && int64_t(x.shape(2)) == dim;
  if (!same || (tokens > 0 && dim > 1 && x.stride(2) != 1)) throw nb::value_error("an array does not fit the layer");
}

void fits_query(const Layer& layer, const Heads& q, const std::optional<Vector>& sinks, const OutHeads& out,
                const std::optional<OutScores>& lse) {
  fits(q, q.shape(0), q.shape(1), layer.k.dim);
  fits(out, q.shape(0), q.shape(1), layer.v.dim);
  if (sinks && sinks->shape(0) != q.shape(1)) throw nb::value_error("sinks do not fit");
  if (lse && (lse->shape(0) != q.shape(0) || lse->shape(1) != q.shape(1))) throw nb::value_error("lse does not fit");
}

kvant_attention_query query_of(const Heads& q, float scale, float softcap, bool causal, bool exact,
                               const std::optional<Vector>& sinks, const OutHeads& out,
                               const std::optional<OutScores>& lse) {
  return {q.data(), int64_t(q.shape(0)), q.stride(0), q.stride(1), int32_t(q.shape(1)), scale, softcap, causal, exact,
          sinks ? sinks->data() : nullptr, out.data(), lse ? lse->data() : nullptr};
}

void has_type(const Input& x, int32_t type) {
  if (x.itemsize() != (type == KVANT_F32 ? 4u : 2u)) throw nb::value_error("an array is not of its type");
}

void add_sequence(nb::module_& m) {
  nb::class_<Sequence>(m, "KvSequence")
      .def("length", [](const Sequence& s, int32_t layer) { return kvant_sequence_length(s.handle.get(), layer); },
           nb::arg("layer"))
      .def("fork",
           [](const Sequence& s) {
             kvant_sequence* fork = nullptr;
             run("fork", [&] { return kvant_sequence_fork(s.handle.get(), &fork); });
             return sequence_of(fork, s.layers);
           })
      .def("truncate",
           [](const Sequence& s, int64_t length) {
             run("truncate", [&] { return kvant_sequence_truncate(s.handle.get(), length); });
           },
           nb::arg("length"))
      .def("held",
           [](const Sequence& s, int32_t layer, int32_t head) { return kvant_sequence_held(s.handle.get(), layer, head); },
           nb::arg("layer"), nb::arg("head"))
      .def("select",
           [](const Sequence& s, const char* name, const std::vector<Selection>& heads, bool evict, int32_t threads) {
             std::vector<kvant_selection> all;
             all.reserve(heads.size());
             for (const Selection& each : heads) all.push_back(each.c());
             run(name, [&] {
               return kvant_sequence_select(s.handle.get(), all.data(), int64_t(all.size()), evict, threads);
             });
           },
           nb::arg("name"), nb::arg("heads"), nb::arg("evict"), nb::arg("threads"))
      .def("read",
           [](const Sequence& s, int32_t layer, int32_t side, int32_t head, int64_t first, OutBytes out) {
             const Layer& own = s.layer(layer);
             const Side& one = side ? own.v : own.k;
             if (int64_t(out.shape(1)) != kvant_kv_row_bytes(one.codec, one.dim)) throw nb::value_error("out does not fit");
             run("to_ggml", [&] {
               return kvant_sequence_read(s.handle.get(), layer, side, head, first, int64_t(out.shape(0)), out.data());
             });
           },
           nb::arg("layer"), nb::arg("side"), nb::arg("head"), nb::arg("first"), nb::arg("out").noconvert())
      .def("decode",
           [](const Sequence& s, int32_t layer, int32_t side, int32_t head, int64_t first, OutFloats out) {
             const Layer& own = s.layer(layer);
             if (int64_t(out.shape(1)) != (side ? own.v : own.k).dim) throw nb::value_error("out does not fit");
             run("keys", [&] {
               return kvant_sequence_decode(s.handle.get(), layer, side, head, first, int64_t(out.shape(0)), out.data());
             });
           },
           nb::arg("layer"), nb::arg("side"), nb::arg("head"), nb::arg("first"), nb::arg("out").noconvert())
      .def("save",
           [](const Sequence& s, int32_t layer, int32_t head) {
             const int64_t bytes = kvant_sequence_state_bytes(s.handle.get(), layer, head);
             if (bytes < 0) throw nb::index_error("no such head");
             PyObject* out = PyBytes_FromStringAndSize(nullptr, bytes);
             if (!out) throw nb::python_error();
             const nb::bytes state = nb::steal<nb::bytes>(out);
             auto* to = reinterpret_cast<uint8_t*>(PyBytes_AsString(out));
             run("save", [&] { return kvant_sequence_save(s.handle.get(), layer, head, to, bytes); });
             return state;
           },
           nb::arg("layer"), nb::arg("head"))
      .def("load",
           [](const Sequence& s, int32_t layer, int32_t head, State state, bool in_place) {
             run("load", [&] {
               return kvant_sequence_load(s.handle.get(), layer, head, state.data(), int64_t(state.shape(0)), in_place);
             });
           },
           nb::arg("layer"), nb::arg("head"), nb::arg("state").noconvert(), nb::arg("in_place"))
      .def("write",
           [](const Sequence& s, int32_t layer, Bytes k, std::optional<Bytes> v) {
             const Layer& own = s.layer(layer);
             const Bytes* both[] = {&k, v ? &*v : nullptr};
             const Side* sides[] = {&own.k, &own.v};
             for (int i = 0; i < (v ? 2 : 1); ++i) {
               const bool same = both[i]->shape(0) == k.shape(0) && int64_t(both[i]->shape(1)) == own.heads &&
                                 int64_t(both[i]->shape(2)) == kvant_kv_row_bytes(sides[i]->codec, sides[i]->dim);
               if (!same) throw nb::value_error("rows do not fit the layer");
             }
             run("from_ggml", [&] {
               return kvant_sequence_write(s.handle.get(), layer, int64_t(k.shape(0)), k.data(), v ? v->data() : nullptr);
             });
           },
           nb::arg("layer"), nb::arg("k").noconvert(), nb::arg("v").none().noconvert());
}

// The sequences of a call, held as long as it may be made again.
struct Parts {
  std::vector<std::shared_ptr<kvant_sequence>> held;
  std::vector<kvant_sequence*> handles;
  std::vector<int64_t> tokens;
  // The one that was refused, or -1.
  int64_t which = -1;

  Parts(const std::vector<const Sequence*>& sequences, std::vector<int64_t> counts) : tokens(std::move(counts)) {
    if (tokens.size() != sequences.size()) throw nb::value_error("counts do not fit");
    for (const Sequence* each : sequences) {
      held.push_back(each->handle);
      handles.push_back(each->handle.get());
    }
  }
  int64_t count() const { return int64_t(handles.size()); }
};

// As run_recorded; an error names the sequence. A row that cannot be stored is named by the caller, who knows what it is
// called.
template <class Call>
void run_parts(const char* function, const std::shared_ptr<Parts>& parts, Call call, const int64_t* bad = nullptr) {
  int32_t code;
  {
    nb::gil_scoped_release release;
    code = call();
  }
  if (bad && *bad >= 0) return;
  const std::string about = parts->which < 0 ? "" : "sequence " + std::to_string(parts->which) + ": ";
  check(code, function, about.c_str());
  if (Program* program = Program::recording()) program->add(function, std::move(call));
}

void add_calls(nb::module_& m) {
  m.def(
      "kv_append",
      [](const Sequence& s, int32_t layer, Input k, int32_t k_type, std::optional<Input> v, int32_t v_type, int32_t threads) {
        const Layer& own = s.layer(layer);
        fits(k, k.shape(0), size_t(own.heads), own.k.dim);
        has_type(k, k_type);
        if (v) {
          fits(*v, k.shape(0), size_t(own.heads), own.v.dim);
          has_type(*v, v_type);
        }
        // A row that cannot be stored is named by the caller, who knows what it is called.
        auto bad = std::make_shared<int64_t>(-1);
        const auto call = [=, handle = s.handle] {
          return kvant_sequence_append(handle.get(), layer, int64_t(k.shape(0)), k.data(), k_type, k.stride(0),
                                       k.stride(1), v ? v->data() : nullptr, v_type, v ? v->stride(0) : 0,
                                       v ? v->stride(1) : 0, threads, bad.get());
        };
        int32_t code;
        {
          nb::gil_scoped_release release;
          code = call();
        }
        if (*bad < 0) check(code, "append");
        if (Program* program = Program::recording(); program && code == KVANT_OK) program->add("append", call);
        return *bad;
      },
      nb::arg("sequence"), nb::arg("layer"), nb::arg("k").noconvert(), nb::arg("k_type"), nb::arg("v").none().noconvert(), nb::arg("v_type"),
      nb::arg("threads"));
  m.def(
      "kv_attend",
      [](const Sequence& s, int32_t layer, Heads q, float scale, float softcap, bool causal, bool exact,
         std::optional<Vector> sinks, OutHeads out, std::optional<OutScores> lse, int32_t threads) {
        fits_query(s.layer(layer), q, sinks, out, lse);
        run_recorded("attend", [=, handle = s.handle] {
          const kvant_attention_query query = query_of(q, scale, softcap, causal, exact, sinks, out, lse);
          return kvant_sequence_attend(handle.get(), layer, &query, threads);
        });
      },
      nb::arg("sequence"), nb::arg("layer"), nb::arg("q").noconvert(), nb::arg("scale"), nb::arg("softcap"), nb::arg("causal"),
      nb::arg("exact"), nb::arg("sinks").none().noconvert(), nb::arg("out").noconvert(),
      nb::arg("lse").none().noconvert(), nb::arg("threads"));
}

void add_calls_for_many(nb::module_& m) {
  m.def(
      "kv_append_many",
      [](const Cache& cache, const std::vector<const Sequence*>& sequences, std::vector<int64_t> counts, int32_t layer,
         Input k, int32_t k_type, std::optional<Input> v, int32_t v_type, int32_t threads) {
        const Layer& own = layer_of(cache.layers, layer);
        fits(k, k.shape(0), size_t(own.heads), own.k.dim);
        has_type(k, k_type);
        if (v) {
          fits(*v, k.shape(0), size_t(own.heads), own.v.dim);
          has_type(*v, v_type);
        }
        const auto parts = std::make_shared<Parts>(sequences, std::move(counts));
        const auto bad = std::make_shared<int64_t>(-1);
        const auto call = [=, handle = cache.handle] {
          return kvant_cache_append(handle.get(), parts->handles.data(), parts->tokens.data(), parts->count(), layer,
                                    int64_t(k.shape(0)), k.data(), k_type, k.stride(0), k.stride(1),
                                    v ? v->data() : nullptr, v_type, v ? v->stride(0) : 0, v ? v->stride(1) : 0, threads,
                                    &parts->which, bad.get());
        };
        run_parts("append_many", parts, call, bad.get());
        return *bad;
      },
      nb::arg("cache"), nb::arg("sequences"), nb::arg("counts"), nb::arg("layer"), nb::arg("k").noconvert(),
      nb::arg("k_type"), nb::arg("v").none().noconvert(), nb::arg("v_type"), nb::arg("threads"));
  m.def(
      "kv_attend_many",
      [](const Cache& cache, const std::vector<const Sequence*>& sequences, std::vector<int64_t> counts, int32_t layer,
         Heads q, float scale, float softcap, bool causal, bool exact, std::optional<Vector> sinks, OutHeads out,
         std::optional<OutScores> lse, int32_t threads) {
        fits_query(layer_of(cache.layers, layer), q, sinks, out, lse);
        const auto parts = std::make_shared<Parts>(sequences, std::move(counts));
        run_parts("attend_many", parts, [=, handle = cache.handle] {
          const kvant_attention_query query = query_of(q, scale, softcap, causal, exact, sinks, out, lse);
          return kvant_cache_attend(handle.get(), parts->handles.data(), parts->tokens.data(), parts->count(), layer,
                                    &query, threads, &parts->which);
        });
      },
      nb::arg("cache"), nb::arg("sequences"), nb::arg("counts"), nb::arg("layer"), nb::arg("q").noconvert(),
      nb::arg("scale"), nb::arg("softcap"), nb::arg("causal"), nb::arg("exact"), nb::arg("sinks").none().noconvert(),
      nb::arg("out").noconvert(), nb::arg("lse").none().noconvert(), nb::arg("threads"));
}

}  // namespace

void bind_kv(nb::module_& m) {
  nb::class_<Side>(m, "KvSide")
      .def("__init__",
           [](Side* self, int32_t codec, int32_t scale, int32_t dim, int32_t rotate, std::optional<Vector> signs,
              std::optional<Table> center, std::optional<Table> equalize) {
             new (self) Side{codec, scale, dim, rotate, signs, center, equalize};
           },
           nb::arg("codec"), nb::arg("scale"), nb::arg("dim"), nb::arg("rotate"), nb::arg("signs").none().noconvert(),
           nb::arg("center").none().noconvert(), nb::arg("equalize").none().noconvert());
  nb::class_<Layer>(m, "KvLayer")
      .def(nb::init<int32_t, Side, Side, int64_t, int64_t, int64_t, int64_t, bool, bool>(), nb::arg("heads"), nb::arg("k"),
           nb::arg("v"), nb::arg("window"), nb::arg("sink"), nb::arg("tail"), nb::arg("chunk"),
           nb::arg("fine"), nb::arg("view"));
  nb::class_<Turn>(m, "KvTurn")
      .def("__init__",
           [](Turn* self, int64_t by, double theta, double scale, std::optional<Vector> factors, int32_t rotary,
              bool interleaved) { new (self) Turn{by, theta, scale, factors, rotary, interleaved}; },
           nb::arg("by"), nb::arg("theta"), nb::arg("scale"), nb::arg("factors").none().noconvert(), nb::arg("rotary"),
           nb::arg("interleaved"));
  nb::class_<Selection>(m, "KvSelection")
      .def("__init__",
           [](Selection* self, int32_t layer, int32_t head, int64_t held, Kept kept, std::optional<Turn> turn, int64_t turn_begin,
              int64_t turn_end) { new (self) Selection{layer, head, held, kept, turn, turn_begin, turn_end, {}}; },
           nb::arg("layer"), nb::arg("head"), nb::arg("held"), nb::arg("kept").noconvert(), nb::arg("turn").none(), nb::arg("turn_begin"),
           nb::arg("turn_end"));
  nb::class_<Cache>(m, "KvCache")
      .def("__init__",
           [](Cache* self, std::vector<Layer> layers, int64_t budget) {
             std::vector<kvant_kv_layer> c;
             for (const Layer& l : layers) {
               c.push_back({l.heads, l.k.c(l.heads), l.v.c(l.heads), l.window, l.sink, l.tail, l.chunk, l.fine, l.view});
             }
             kvant_cache* handle = nullptr;
             check(kvant_cache_new(c.data(), int32_t(c.size()), budget, &handle), "KVCache");
             new (self) Cache{std::shared_ptr<kvant_cache>(handle, kvant_cache_free), std::move(layers)};
           },
           nb::arg("layers"), nb::arg("budget"))
      .def("sequence",
           [](const Cache& self) {
             kvant_sequence* handle = nullptr;
             check(kvant_sequence_new(self.handle.get(), &handle), "sequence");
             return sequence_of(handle, self.layers);
           })
      .def("usage", [](const Cache& self) {
        kvant_cache_stats stats;
        kvant_cache_usage(self.handle.get(), &stats);
        return nb::make_tuple(stats.used, stats.reserved, stats.pages);
      });
  add_sequence(m);
  add_calls(m);
  add_calls_for_many(m);
  m.def("kv_codecs", [] {
    std::vector<const char*> names;
    for (int32_t i = 0; i < kvant_kv_codec_count(); ++i) names.push_back(kvant_kv_codec_name(i));
    return names;
  });
  m.def("kv_row_bytes", &kvant_kv_row_bytes, nb::arg("codec"), nb::arg("dim"));
}
